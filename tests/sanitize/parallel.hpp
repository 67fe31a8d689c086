#pragma once

namespace clara_test {

/// Parts of a call on threads of its own, and on those of an OpenMP runtime: each is run once, a
/// team may have any number of threads, and a part that throws is heard of after all others ended.
void each_part_once();
void failing_part();
void parts_at_once();

/// Members of a team that wait for each other, on the same threads.
void members_wait();

}  // namespace clara_test
