#pragma once

#include "core/rows.hpp"
#include "core/simd/kernels.hpp"

namespace clara {

/// What stands for 1/|row| of a finite row whose norm is not within 2^-80 … 2^80: float32 sums of
/// products with it might overflow or vanish, so it is scored in float64.
constexpr float kExtreme = -1.0f;

/// 1/|row| in float32; 0 for a zero row, kExtreme, or NaN where an element is not finite.
float inverse_norm(const Rows& rows, int64_t index, const Kernels& kernels);

/// The sum of a row's squares, which no float32 value makes overflow or vanish.
double squares_in_float64(const Rows& rows, int64_t index);

/// `inverse_norm` of all rows.
void inverse_norms(const Rows& rows, int threads, float* out);

}  // namespace clara
