#include "core/decoder/team.hpp"

#include <exception>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace clara {
namespace {

constexpr int kSpins = 2000;

/// Leaves the core to its other hardware thread for a moment.
void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <class Ready>
void spin_until(Ready ready) {
    for (int spins = 0; spins < kSpins; ++spins) {
        if (ready()) return;
        pause();
    }
    while (!ready()) std::this_thread::yield();
}

}  // namespace

void Barrier::wait() {
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

void run_team(int members, const std::function<void(const Member&)>& body) {
    std::atomic<Barrier*> ready{nullptr};  // set when all threads that can be started are
    std::atomic<int> size{1};
    std::vector<std::thread> threads;
    threads.reserve(members - 1);
    for (int number = 1; number < members; ++number) {
        try {
            threads.emplace_back([&, number] {
                spin_until([&] { return ready.load(std::memory_order_acquire) != nullptr; });
                body({number, size.load(std::memory_order_relaxed), *ready.load()});
            });
        } catch (const std::exception&) {
            break;
        }
        size.store(number + 1, std::memory_order_relaxed);
    }
    Barrier barrier(size.load());
    ready.store(&barrier, std::memory_order_release);
    body({0, size.load(), barrier});
    for (std::thread& thread : threads) thread.join();
}

}  // namespace clara
