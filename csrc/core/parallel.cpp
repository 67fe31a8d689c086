#include "core/parallel.hpp"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace clara {
namespace {

/// Joins on every way out, so that a failed start or a thrown part leaves no thread running.
class Threads {
public:
    Threads() = default;
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;
    ~Threads() {
        for (std::thread& thread : threads_) thread.join();
    }

    template <class Work>
    void start(Work work) {
        threads_.emplace_back(work);
    }

    void reserve(int count) { threads_.reserve(count); }

private:
    std::vector<std::thread> threads_;
};

}  // namespace

void for_each_part(int64_t count, int parts,
                   const std::function<void(int part, int64_t begin, int64_t end)>& body) {
    const int64_t size = count / parts;
    const int64_t longer = count % parts;  // the first `longer` parts take one element more
    std::vector<std::exception_ptr> failures(parts);

    const auto run = [&](int part) {
        const int64_t begin = part * size + (part < longer ? part : longer);
        const int64_t end = begin + size + (part < longer ? 1 : 0);
        try {
            body(part, begin, end);
        } catch (...) {
            failures[part] = std::current_exception();
        }
    };
    {
        Threads threads;
        threads.reserve(parts - 1);
        for (int part = 1; part < parts; ++part) {
            threads.start([&run, part] { run(part); });
        }
        run(0);
    }
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

int useful_threads(double elements, int64_t pieces, int threads) {
    constexpr double kElementsPerThread = 1 << 17;  // below this a thread costs more than it saves
    const double useful = std::min(elements / kElementsPerThread, static_cast<double>(pieces));
    return std::max(1, static_cast<int>(std::min<double>(threads, useful)));
}

}  // namespace clara
