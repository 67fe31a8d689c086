#pragma once

#include <cstdint>

#include "core/simd/linear.hpp"

namespace clara {

/// Whether `kernels()` has a kernel for adapted_linear.
bool multiplies_bfloat16();

/// Writes `rows` rows of the result.
void adapted_linear(const AdaptedLinear& call, int64_t rows, int threads);

/// Writes the gradients of `rows` rows, where multiplies_bfloat16().
void linear_gradient(const LinearGradient& call, int64_t rows, int threads);

/// Writes the product, where multiplies_bfloat16(); 0 without rows.
void thin_product(const ThinProduct& call, int threads);

}  // namespace clara
