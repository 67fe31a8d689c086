#pragma once

#include <cstdint>

#include "core/rows.hpp"

namespace clara {

/// A root-mean-square norm of rows, all adjacent in memory: out = x / rms(x) · weight, where x has
/// `delta` added first if there is one.
struct Norm {
    DataType type;      // of x, delta and sum: float32 or bfloat16
    DataType out_type;  // of out: float32 or bfloat16
    int64_t columns;
    const void* x;      // [rows, columns]
    const void* delta;  // the same, or null
    const float* weight;
    float epsilon;
    void* sum;       // x + delta, rounded to its type, which the norm is of; null without a delta
    float* inverse;  // [rows], 1 / sqrt(mean of squares + epsilon)
    void* out;
};

/// The gradient of Norm::out in x.
struct NormGradient {
    DataType type;       // of x, beside and out
    DataType grad_type;  // of grad
    int64_t columns;
    const void* grad;  // [rows, columns]
    const void* x;     // what the norm was of
    const float* weight;
    const float* inverse;  // of Norm
    const void* beside;    // [rows, columns] that is added to the gradient, or null
    void* out;             // [rows, columns]
};

/// out = activation(gate) · up, of values of one type. Either activation is gate · sigmoid(z).
struct Gated {
    DataType type;  // of all: float32 or bfloat16
    bool gelu;      // the tanh approximation of GELU; else SiLU
    const void* gate;
    const void* up;
    const void* grad;  // of out; null for the forward pass
    void* out;         // of the forward pass
    void* grad_gate;
    void* grad_up;
};

/// A rotation of the two halves of each head, by angles that all heads of a row share.
struct Rotation {
    DataType type;      // of x
    DataType out_type;  // of out
    bool transposed;  // the gradient: the rotation back, if both halves of a row have equal angles
    int64_t heads, head_dim;
    const void* x;         // [rows, heads, head_dim]
    const float* cosines;  // [rows, head_dim]
    const float* sines;    // the same
    void* out;
};

/// What one instruction set offers, each for rows or values from `begin` to `end`.
struct RowKernels {
    void (*norm)(const Norm& norm, int64_t begin, int64_t end);
    void (*norm_gradient)(const NormGradient& gradient, int64_t begin, int64_t end);
    void (*gated)(const Gated& gated, int64_t begin, int64_t end);
    void (*gated_gradient)(const Gated& gated, int64_t begin, int64_t end);
    void (*rotate)(const Rotation& rotation, int64_t begin, int64_t end);
};

}  // namespace clara
