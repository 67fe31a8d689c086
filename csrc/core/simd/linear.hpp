#pragma once

#include <cstdint>

namespace clara {

constexpr int64_t kLinearRows = 64;     // of x that are multiplied at a time
constexpr int64_t kLinearOutputs = 48;  // of W for which they are

/// out = x W' + scaling · (x A') B' + bias, all but the bias in bfloat16. Rows of one matrix are
/// `columns` apart, but for x and out, whose strides are in values. Inputs and rank are even.
struct AdaptedLinear {
    int64_t inputs, outputs, rank;  // rank is 0 without an adapter
    const char* x;                  // [rows, inputs]
    int64_t x_stride;
    const char* weight;  // W [outputs, inputs]
    const float* bias;   // [outputs] or null
    const char* down;    // A [rank, inputs]
    const char* up;      // B [outputs, rank]
    float scaling;
    char* out;  // [rows, outputs]
    int64_t out_stride;
    char* changes;  // scaling · x A' [rows, rank], or null
};

/// A part of the result.
struct LinearPart {
    int64_t first_row, last_row, first_output, last_output;
};

/// What an instruction set offers that multiplies bfloat16 values with float32 sums. Each sum is
/// rounded once, after the adapter's change was added; (x A') is rounded before.
struct LinearKernels {
    /// Bytes, aligned to those of a cache line, that `multiply` needs.
    int64_t (*scratch_bytes)(const AdaptedLinear& call, int64_t rows);

    void (*multiply)(const AdaptedLinear& call, const LinearPart& part, char* scratch);
};

/// The gradients of AdaptedLinear in x, and in x A' before its scaling, all in bfloat16:
/// thin = scaling · grad B and out = grad W + thin A. Outputs and rank are even.
struct LinearGradient {
    int64_t inputs, outputs, rank;
    const char* grad;    // [rows, outputs]
    const char* weight;  // W [outputs, inputs]
    const char* down;    // A [rank, inputs]
    const char* up;      // B [outputs, rank]
    float scaling;
    char* thin;  // [rows, rank]
    char* out;   // [rows, inputs]
};

/// What an instruction set offers for that. Each sum is rounded once.
struct LinearGradientKernels {
    /// Bytes, aligned to those of a cache line, that `multiply` needs.
    int64_t (*scratch_bytes)(const LinearGradient& call);

    /// Rows from `begin` to `end`.
    void (*multiply)(const LinearGradient& call, int64_t begin, int64_t end, char* scratch);
};

constexpr int64_t kThinColumns = 32;  // of a wide matrix that are multiplied at a time

/// out = thin' wide, or its transpose, in float32 of bfloat16 values: the gradients of
/// AdaptedLinear in A, of x and LinearGradient::thin, and in B, of grad and AdaptedLinear::changes.
/// Columns and rank are even.
struct ThinProduct {
    int64_t rows, columns, rank;
    const char* wide;  // [rows, columns]
    const char* thin;  // [rows, rank]
    bool transposed;
    float* out;  // [rank, columns], or [columns, rank] if transposed
};

/// What an instruction set offers for that.
struct ThinProductKernels {
    /// Bytes, aligned to those of a cache line, that `multiply` needs for so many columns.
    int64_t (*scratch_bytes)(const ThinProduct& call, int64_t columns);

    /// Columns from `begin`, a multiple of kThinColumns, to `end`.
    void (*multiply)(const ThinProduct& call, int64_t begin, int64_t end, char* scratch);
};

}  // namespace clara
