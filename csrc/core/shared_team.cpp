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

std::atomic<const OpenMp*>& shared() noexcept {
    static std::atomic<const OpenMp*> value{nullptr};
    return value;
}

/// Whether this process was a fork before it loaded this module, perhaps one of a process that had
/// the runtime. A program that was started since then is none. Nor is it where nothing tells.
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

/// What the library is bound to. The loader looks where it does for all libraries, such as among
/// those of LD_PRELOAD, and then at what this one depends on; others may bring runtimes of theirs.
template <class Function>
void look_up(void* library, const char* name, Function** found) {
    void* symbol = dlsym(RTLD_DEFAULT, name);
    if (symbol == nullptr) symbol = dlsym(library, name);
    *found = reinterpret_cast<Function*>(symbol);
}

}  // namespace

void share_threads_of(const char* library) {
    void* loaded = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);  // for good, so that it stays
    if (loaded == nullptr || was_forked()) return;
    static OpenMp team{};
    look_up(loaded, "GOMP_parallel", &team.parallel);
    look_up(loaded, "omp_get_max_threads", &team.most_threads);
    look_up(loaded, "omp_get_num_threads", &team.threads);
    if (team.parallel && team.most_threads && team.threads) shared() = &team;
}

const OpenMp* shared_team() {
    const bool usable = kSeesForks && !forked().load(std::memory_order_relaxed);
    return usable ? shared().load(std::memory_order_acquire) : nullptr;
}
#else
void share_threads_of(const char* /*library*/) {}

const OpenMp* shared_team() { return nullptr; }
#endif

}  // namespace clara
