#include "parallel.hpp"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/decoder/team.hpp"
#include "core/parallel.hpp"
#include "core/shared_team.hpp"
#include "truth.hpp"

namespace clara_test {
namespace {

constexpr int kCrowd = 6;

void call_alone(void (*work)(void*), void* data, unsigned /*threads*/, unsigned /*flags*/) {
    work(data);
}

void call_in_a_crowd(void (*work)(void*), void* data, unsigned /*threads*/, unsigned /*flags*/) {
    std::vector<std::thread> crowd;
    for (int i = 1; i < kCrowd; ++i) crowd.emplace_back(work, data);
    work(data);
    for (std::thread& each : crowd) each.join();
}

/// Two that stand for runtimes with fewer and with more threads than parts, and the system's, if it
/// is there. ThreadSanitizer does not see how the system's threads wait for each other, and takes
/// it for a race.
std::vector<const clara::OpenMp*> teams() {
    static const clara::OpenMp alone{call_alone, [] { return 64; }, [] { return 1; }};
    static const clara::OpenMp crowd{call_in_a_crowd, [] { return 64; }, [] { return kCrowd; }};
    std::vector<const clara::OpenMp*> found{nullptr, &alone, &crowd};
#if !defined(__SANITIZE_THREAD__)
    if (void* library = dlopen("libgomp.so.1", RTLD_NOW)) {
        static const clara::OpenMp system{
            reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(
                dlsym(library, "GOMP_parallel")),
            reinterpret_cast<int (*)()>(dlsym(library, "omp_get_max_threads")),
            reinterpret_cast<int (*)()>(dlsym(library, "omp_get_num_threads"))};
        reinterpret_cast<void (*)(int)>(dlsym(library, "omp_set_num_threads"))(kCrowd);
        found.push_back(&system);
    }
#endif
    return found;
}

void expect_each_once(const clara::OpenMp* team, int count, int parts) {
    std::vector<std::atomic<int>> calls(parts), elements(count);
    std::vector<int64_t> begins(parts + 1, count);
    clara::for_each_part(team, count, parts, [&](int part, int64_t begin, int64_t end) {
        ++calls[part];
        begins[part] = begin;
        for (int64_t i = begin; i < end; ++i) ++elements[i];
    });
    for (const std::atomic<int>& each : calls) expect(each == 1, "a part was not run once");
    for (const std::atomic<int>& each : elements) expect(each == 1, "parts do not share all");
    for (int part = 0; part < parts; ++part) {
        const int64_t size = begins[part + 1] - begins[part];
        expect(size == count / parts || size == count / parts + 1, "parts differ in size");
    }
}

}  // namespace

void each_part_once() {
    expect(clara::shared_team() == nullptr, "there is a team that nobody shared");
    for (const clara::OpenMp* team : teams()) {
        for (const int count : {0, 1, 10, 1000}) {
            for (const int parts : {1, 2, 3, kCrowd, 64, 65}) expect_each_once(team, count, parts);
        }
    }
}

void failing_part() {
    for (const clara::OpenMp* team : teams()) {
        for (const int failing : {0, 2}) {
            std::atomic<int> ended{0};
            std::string thrown;
            try {
                clara::for_each_part(team, 10, 4, [&](int part, int64_t, int64_t) {
                    if (part >= failing && part % 2 == 0) {
                        throw std::runtime_error(std::to_string(part));
                    }
                    std::this_thread::sleep_for(std::chrono::milliseconds(10));
                    ++ended;
                });
            } catch (const std::runtime_error& error) {
                thrown = error.what();
            }
            expect(thrown == std::to_string(failing), "not the first part's exception is thrown");
            expect(ended == (failing == 0 ? 2 : 3), "for_each_part lost a part");
        }
    }
}

void parts_at_once() {
    for (const clara::OpenMp* team : teams()) {
        std::vector<std::thread> callers;
        std::atomic<int> sum{0};
        for (int caller = 0; caller < 4; ++caller) {
            callers.emplace_back([&] {
                for (int i = 0; i < 20; ++i) {
                    clara::for_each_part(team, 3, 3, [&](int, int64_t begin, int64_t) {
                        // Within a call the runtime may have a single thread to give.
                        clara::for_each_part(team, 2, 2, [&](int, int64_t inner, int64_t) {
                            sum += static_cast<int>(10 * begin + inner);
                        });
                    });
                }
            });
        }
        for (std::thread& caller : callers) caller.join();
        expect(sum == 4 * 20 * (2 * 30 + 3), "calls at the same time lost a part");
    }
}

void members_wait() {
    constexpr int kPhases = 50;
    for (const clara::OpenMp* team : teams()) {
        for (const int members : {1, 2, kCrowd, kCrowd + 2}) {
            std::vector<int> counts(members, 0);
            std::atomic<int> calls{0}, wrong{0};
            clara::run_team(team, members, [&](const clara::Member& member) {
                ++calls;
                for (int phase = 1; phase <= kPhases; ++phase) {
                    ++counts[member.number];
                    member.barrier.wait();
                    for (int i = 0; i < member.members; ++i) wrong += counts[i] != phase;
                    member.barrier.wait();
                }
            });
            expect(wrong == 0, "a member of a team did not wait");
            expect(calls >= 1 && calls <= members, "a team has more members than were asked for");
            for (int i = 0; i < calls; ++i) expect(counts[i] == kPhases, "a member is missing");
        }
    }
}

}  // namespace clara_test
