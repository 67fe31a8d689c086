#include "core/shared_team.hpp"

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#endif

namespace clara {

#if defined(__linux__)
namespace {

/// Whether this process is a fork of one that had loaded this module.
std::atomic<bool>& forked() noexcept {
    static std::atomic<bool> value{false};
    return value;
}

const bool kSeesForks = pthread_atfork(nullptr, nullptr, [] { forked() = true; }) == 0;

/// Whether this process was a fork before it loaded this module, perhaps one of a process that had
/// PyTorch. A program that was started since then is none. Where the kernel does not tell, neither.
bool was_forked() {
    constexpr int kFlags = 6;                      // fields behind the name of the program
    constexpr unsigned long kForkedNoExec = 0x40;  // PF_FORKNOEXEC in Linux
    std::ifstream file("/proc/self/stat");
    const std::string status{std::istreambuf_iterator<char>(file), {}};
    size_t end = status.rfind(')');
    for (int field = 0; field <= kFlags && end != std::string::npos; ++field) {
        end = status.find(' ', end + 1);
    }
    if (end == std::string::npos) return false;
    return (std::strtoul(status.c_str() + end, nullptr, 10) & kForkedNoExec) != 0;
}

/// What PyTorch is bound to. The loader looks where all libraries do first, such as among those of
/// LD_PRELOAD, and then at what PyTorch's library depends on; other libraries bring runtimes, too.
template <class Function>
Function* of_pytorch(void* pytorch, const char* name) {
    void* found = dlsym(RTLD_DEFAULT, name);
    if (found == nullptr) found = dlsym(pytorch, name);
    return reinterpret_cast<Function*>(found);
}

OpenMp found_team() {
    void* pytorch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);  // held for good, as it is
    if (pytorch == nullptr || was_forked()) return {nullptr, nullptr, nullptr};
    return {of_pytorch<void(void (*)(void*), void*, unsigned, unsigned)>(pytorch, "GOMP_parallel"),
            of_pytorch<int()>(pytorch, "omp_get_max_threads"),
            of_pytorch<int()>(pytorch, "omp_get_num_threads")};
}

}  // namespace

const OpenMp* shared_team() {
    // Asked before the variable, which another thread may have been initializing during the fork.
    if (!kSeesForks || forked().load(std::memory_order_relaxed)) return nullptr;
    static const OpenMp team = found_team();
    const bool complete =
        team.parallel != nullptr && team.most_threads != nullptr && team.threads != nullptr;
    return complete ? &team : nullptr;
}
#else
const OpenMp* shared_team() { return nullptr; }
#endif

}  // namespace clara
