#pragma once

#include <cstdint>

#include "core/rows.hpp"
#include "core/scorer.hpp"

namespace clara {

/// Exact top-k by cosine: for each query the best min(k, N) rows in descending order of score and,
/// where scores are equal, ascending order of row. `mask`, unless null, has a byte for each row,
/// which is 0 for rows that must not be found. `scores` and `indices` are [B, min(k, N)],
/// row-major, written in full: with -inf and -1 where there are fewer rows.
///
/// A zero vector scores 0. A score that is not a number (a row or query with NaN or infinity) comes
/// after all others. Results do not depend on `threads`, the most threads used, nor on the position
/// of a row, nor on the other queries.
void cosine_topk(const Rows& queries, const Searched& searched, const uint8_t* mask, int64_t k,
                 int threads, float* scores, int64_t* indices);

/// The same where query i has candidates of its own: entries offsets[i] to offsets[i + 1] of
/// `listed`, or these numbers themselves if `listed` is null. Numbers that are no row are skipped.
/// `scores` and `indices` are [B, k].
void cosine_rerank(const Rows& queries, const Searched& searched, const int64_t* listed,
                   const int32_t* offsets, int64_t k, int threads, float* scores, int64_t* indices);

}  // namespace clara
