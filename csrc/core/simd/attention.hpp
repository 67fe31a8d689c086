#pragma once

#include <cstdint>

namespace clara {

/// Packed documents that attend to themselves. Query head h reads key and value head
/// h / (heads / kv_heads). All are contiguous.
struct AttentionInputs {
    int64_t heads, kv_heads, width;  // width is a multiple of 16
    const char* q;                   // bfloat16 [query rows, heads, width]
    const char* k;                   // bfloat16 [rows, kv_heads, width]
    const char* v;                   // the same
    float scale;
    int64_t window;  // keys that a row sees; 0 for all up to its own

    int64_t shared() const { return heads / kv_heads; }
};

struct PackedAttention {
    AttentionInputs inputs;
    char* out;   // bfloat16 [query rows, heads, width]
    float* lse;  // [query rows, heads], the logs of the softmax's sums
};

/// The gradients of `out` above in its inputs, all bfloat16 and of the shapes of what they belong
/// to. Scores and their softmax are computed anew.
struct AttentionGradient {
    AttentionInputs inputs;
    const char* grad;  // of out
    char *q, *k, *v;
};

/// A document: its last query row is its last row.
struct AttendedDocument {
    int64_t first_query, queries, first_row, rows;
};

/// What an instruction set offers that multiplies bfloat16 values with float32 sums. Scores, their
/// exponentials and all sums are float32; exponentials are rounded before they weigh the values.
struct AttentionKernels {
    /// Bytes, aligned to those of a cache line, that `attend` needs.
    int64_t (*scratch_bytes)(const AttentionInputs& inputs, int64_t rows);

    /// All heads of a document that share a head of keys and values.
    void (*attend)(const PackedAttention& call, const AttendedDocument& document, int64_t kv_head,
                   char* scratch);
};

/// The same for gradients: weights and the gradients of scores are rounded before they weigh
/// values, keys, queries and gradients of results.
struct AttentionGradientKernels {
    /// Bytes, aligned to those of a cache line, that `differentiate` needs.
    int64_t (*scratch_bytes)(const AttentionInputs& inputs, int64_t rows);

    /// All heads of a document that share a head of keys and values. Writes the gradients of all
    /// of its rows.
    void (*differentiate)(const AttentionGradient& call, const AttendedDocument& document,
                          int64_t kv_head, char* scratch);
};

}  // namespace clara
