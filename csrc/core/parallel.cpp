#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace clara {
namespace {

using Body = std::function<void(int part, int64_t begin, int64_t end)>;

/// Parts of a call, for any number of threads to take.
class Parts {
public:
    Parts(int64_t count, int parts, const Body& body)
        : size_(count / parts), longer_(count % parts), body_(body), failures_(parts) {}

    /// Runs parts until none is left.
    void take() noexcept {
        for (int part = next_++; part < size(); part = next_++) run(part);
    }

    /// Once all are done.
    void rethrow_first() const {
        for (const std::exception_ptr& failure : failures_) {
            if (failure) std::rethrow_exception(failure);
        }
    }

    int size() const { return static_cast<int>(failures_.size()); }

private:
    void run(int part) noexcept {
        const int64_t begin = part * size_ + std::min<int64_t>(part, longer_);
        const int64_t end = begin + size_ + (part < longer_ ? 1 : 0);
        try {
            body_(part, begin, end);
        } catch (...) {
            failures_[part] = std::current_exception();
        }
    }

    const int64_t size_, longer_;  // the first `longer_` parts take one element more
    const Body& body_;
    std::vector<std::exception_ptr> failures_;
    std::atomic<int> next_{0};
};

/// Asks for no number of threads: with another than its own, the runtime would end some threads or
/// start more, and so again in the next call of the library that it is shared with.
void run_in_team(const OpenMp& team, Parts& parts) {
    team.parallel([](void* data) { static_cast<Parts*>(data)->take(); }, &parts, 0, 0);
}

/// Joins on every way out.
class Threads {
public:
    Threads() = default;
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;
    ~Threads() {
        for (std::thread& thread : threads_) thread.join();
    }

    /// Fewer where the system has no more to give.
    template <class Work>
    void start(int count, Work work) {
        threads_.reserve(count);
        try {
            for (int i = 0; i < count; ++i) threads_.emplace_back(work);
        } catch (const std::system_error&) {
            return;
        }
    }

private:
    std::vector<std::thread> threads_;
};

void run_in_own_threads(Parts& parts) {
    Threads threads;
    threads.start(parts.size() - 1, [&parts] { parts.take(); });
    parts.take();
}

}  // namespace

void for_each_part(const OpenMp* team, int64_t count, int parts, const Body& body) {
    Parts all(count, parts, body);
    if (parts == 1) {
        all.take();
    } else if (team != nullptr && team->most_threads() >= parts) {
        run_in_team(*team, all);
    } else {
        run_in_own_threads(all);
    }
    all.rethrow_first();
}

void for_each_part(int64_t count, int parts, const Body& body) {
    for_each_part(parts > 1 ? shared_team() : nullptr, count, parts, body);
}

int useful_threads(double elements, int64_t pieces, int threads) {
    constexpr double kElementsPerThread = 1 << 17;  // below this a thread costs more than it saves
    const double useful = std::min(elements / kElementsPerThread, static_cast<double>(pieces));
    return std::max(1, static_cast<int>(std::min<double>(threads, useful)));
}

}  // namespace clara
