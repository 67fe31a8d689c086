#pragma once

#include <cstdint>
#include <functional>

#include "core/shared_team.hpp"

namespace clara {

/// Splits [0, count) into `parts` consecutive ranges and calls body(part, begin, end) once for
/// each, on up to `parts` threads, the caller's among them. Parts may not wait for each other: a
/// thread takes one after another, and there may be fewer threads than parts. The exception of the
/// first part that threw is rethrown after every part has ended.
///
/// The threads are those of the shared team, if there is one: its idle ones spin for milliseconds,
/// on the processors that threads of ours would need. Elsewhere threads are started, which end with
/// the call.
void for_each_part(int64_t count, int parts,
                   const std::function<void(int part, int64_t begin, int64_t end)>& body);

/// The same with the threads of `team`, or without them if it is nullptr.
void for_each_part(const OpenMp* team, int64_t count, int parts,
                   const std::function<void(int part, int64_t begin, int64_t end)>& body);

/// As many of `threads` as have enough to do, where `elements` are to be read in `pieces` that
/// cannot be split; at least one.
int useful_threads(double elements, int64_t pieces, int threads);

}  // namespace clara
