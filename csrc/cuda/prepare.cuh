#pragma once

#include "cuda/top_list.cuh"

namespace clara {

/// What kernels multiply rows with. `planes` lie `plane_stride` bytes apart, queries
/// `query_stride`.
enum class Form {
    unit,    // q / |q| in float32; blocks of 8 vectors have their halves apart (see unit_position)
    pieces,  // q times a power of two as a sum of up to three planes of the corpus's 16-bit type
    codes,   // round(q * 32639 / max |q|) = 256 * plane 0 + plane 1, both int8
};

struct Prepared {
    uint8_t* data;
    int64_t query_stride;
    int64_t plane_stride;
    int64_t columns;  // padded, with zeros
    Form form;
    DataType type;  // of the corpus
    int planes;
    float* scales;  // 1/|what was prepared|: 0 for a zero query, NaN where an element is not finite
};

/// What a search starts from, for each query: no threshold, and none of the best of all blocks.
struct Start {
    Key* thresholds;   // [B]
    Key* shared_best;  // [B, k] or null
    int k;
};

/// Prepares `count` queries from number `first` on.
void prepare_queries(const DeviceRows& queries, int64_t first, int64_t count,
                     const Prepared& prepared, const Start& start, cudaStream_t stream);

}  // namespace clara
