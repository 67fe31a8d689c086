#pragma once

#include <cstdint>

#include "core/rows.hpp"

namespace clara {

/// Exact top-k by cosine. For each query the best min(k, corpus.count) rows of the corpus, in
/// descending order of score and, where scores are equal, ascending order of row. `scores` and
/// `indices` are [queries.count, min(k, corpus.count)], row-major, written in full.
///
/// Products and sums are float64 and the score is rounded to float32 once, so that it is the
/// nearest float32 to the exact cosine of the stored values but for about one case in 2^28. A zero
/// vector scores 0. A score that is not a number (a row or query with NaN or infinity) sorts last.
/// The result does not depend on `threads`, the most threads used.
void cosine_topk(const Rows& queries, const Rows& corpus, int64_t k, int threads, float* scores,
                 int64_t* indices);

}  // namespace clara
