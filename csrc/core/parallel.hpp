#pragma once

#include <cstdint>
#include <functional>

namespace clara {

/// Splits [0, count) into `parts` consecutive ranges and calls body(part, begin, end) for each, one
/// thread per part and part 0 on the caller's. The threads are ours, so no second OpenMP runtime
/// meets the host program's, and they end with the call, so a fork finds none of them. The first
/// exception of a part is rethrown after every thread has ended.
void for_each_part(int64_t count, int parts,
                   const std::function<void(int part, int64_t begin, int64_t end)>& body);

/// As many of `threads` as have enough to do, where `elements` are to be read in `pieces` that
/// cannot be split; at least one.
int useful_threads(double elements, int64_t pieces, int threads);

}  // namespace clara
