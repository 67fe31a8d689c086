#pragma once

#include <atomic>
#include <functional>

#include "core/shared_team.hpp"

namespace clara {

/// Where the members of a team wait for each other. They spin, for phases take microseconds, and
/// give the processor away when others need it.
class Barrier {
public:
    explicit Barrier(int members) : members_(members) {}

    void wait();

private:
    const int members_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> phase_{0};
};

/// What a member of a team knows.
struct Member {
    int number, members;
    Barrier& barrier;
};

/// Runs `body` on up to `members` threads at once, the caller's among them: those of the shared
/// team, as for_each_part does, else some that are started. Where there are not as many, the team
/// is smaller. The body may not throw: others would wait for it.
void run_team(int members, const std::function<void(const Member&)>& body);

/// The same with the threads of `team`, or without them if it is nullptr.
void run_team(const OpenMp* team, int members, const std::function<void(const Member&)>& body);

}  // namespace clara
