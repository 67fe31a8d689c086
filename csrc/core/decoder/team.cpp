#include "core/decoder/team.hpp"

#include <algorithm>
#include <exception>
#include <optional>
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

using Body = std::function<void(const Member&)>;

/// A call, which threads of a runtime join. All that it has for the call are there, so they may
/// wait for each other.
class Call {
public:
    Call(const OpenMp& team, int members, const Body& body)
        : team_(team), members_(members), body_(body) {}

    void join() noexcept {
        const int members = std::min(members_, team_.threads());
        const int number = joined_++;
        if (number >= members) return;
        if (number == 0) ready_.store(&barrier_.emplace(members), std::memory_order_release);
        Barrier* barrier = nullptr;
        spin_until([&] { return (barrier = ready_.load(std::memory_order_acquire)) != nullptr; });
        body_({number, members, *barrier});
    }

private:
    const OpenMp& team_;
    const int members_;
    const Body& body_;
    std::atomic<int> joined_{0};
    std::optional<Barrier> barrier_;
    std::atomic<Barrier*> ready_{nullptr};
};

void run_in_own_threads(int members, const Body& body) {
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

void run_team(const OpenMp* team, int members, const Body& body) {
    if (team == nullptr || members == 1 || team->most_threads() < members) {
        run_in_own_threads(members, body);
        return;
    }
    Call call(*team, members, body);
    team->parallel([](void* data) { static_cast<Call*>(data)->join(); }, &call, 0, 0);
}

void run_team(int members, const Body& body) {
    run_team(members > 1 ? shared_team() : nullptr, members, body);
}

}  // namespace clara
