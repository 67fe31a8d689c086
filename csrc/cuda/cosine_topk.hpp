#pragma once

#include <cstdint>

#include "core/rows.hpp"

namespace clara {

/// A matrix in device memory. Elements of one row are adjacent; rows are `stride` elements apart
/// and need no alignment beyond an element's. The fastest loads need 16 bytes.
struct CudaRows {
    const void* data;
    DataType type;
    int64_t count;
    int64_t columns;
    int64_t stride;
};

// All functions only launch kernels on `stream`, a cudaStream_t of `device`: they neither allocate
// nor wait, so they can be captured in a CUDA graph. They throw std::invalid_argument with the
// argument's name, and std::runtime_error with CUDA's words.

/// 1/|row| in float32 for each row; 0 for a zero row, NaN where an element is not finite, -1 where
/// |row| is not within 2^-80 … 2^80 (such a row is scored in float64).
void cuda_inverse_norms(const CudaRows& rows, float* inverse_norms, int device, void* stream);

/// Bytes that cuda_cosine_topk needs for these sizes: under 64 MiB, but for 128 queries of more
/// than 16 MiB together, which are kept in a prepared form.
int64_t cuda_cosine_topk_workspace(const CudaRows& queries, const CudaRows& corpus, int64_t k,
                                   int device);

/// Like cosine_topk of core/cosine_topk.hpp. Queries are float32, float16 or bfloat16. `scores` and
/// `indices` are [B, min(k, N)]; k is at most 2,048. A score depends on its query and row, on
/// whether there are more than 8 queries, and on nothing else.
void cuda_cosine_topk(const CudaRows& queries, const CudaRows& corpus, const float* inverse_norms,
                      const uint8_t* mask, int64_t k, float* scores, int64_t* indices,
                      void* workspace, int64_t workspace_bytes, int device, void* stream);

/// Bytes that cuda_cosine_rerank needs for `candidates` in all.
int64_t cuda_cosine_rerank_workspace(const CudaRows& queries, const CudaRows& corpus,
                                     int64_t candidates, int64_t k, int device);

/// Query i against entries offsets[i] to offsets[i + 1] of `rows`, which has `candidates`, or these
/// numbers themselves if `rows` is null. Numbers that are no row are skipped. `scores` and
/// `indices` are [B, k]. Scores are those of cuda_cosine_topk with at most 8 queries.
void cuda_cosine_rerank(const CudaRows& queries, const CudaRows& corpus, const float* inverse_norms,
                        const int64_t* rows, int64_t candidates, const int32_t* offsets, int64_t k,
                        float* scores, int64_t* indices, void* workspace, int64_t workspace_bytes,
                        int device, void* stream);

}  // namespace clara
