#pragma once

#include "core/elementwise/row_kernels.hpp"

namespace clara {

/// Each for `rows` rows (`values` values), split over up to `threads` threads. An output may be an
/// input of the same type that is read at the same place.
void norm_rows(const Norm& norm, int64_t rows, int threads);
void norm_gradient_rows(const NormGradient& gradient, int64_t rows, int threads);
void gate_values(const Gated& gated, int64_t values, int threads);
void rotate_rows(const Rotation& rotation, int64_t rows, int threads);

}  // namespace clara
