#pragma once

#include "cuda/few_queries.cuh"

namespace clara {

/// Writes the best `width` keys of each query's lists in order: scores and rows, [B, width].
void merge_lists(const Lists& lists, int64_t query_count, int width, float* scores,
                 int64_t* indices, cudaStream_t stream);

}  // namespace clara
