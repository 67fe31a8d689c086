#include "core/elementwise/elementwise.hpp"

#include "core/parallel.hpp"
#include "core/simd/kernels.hpp"

namespace clara {
namespace {

template <class Call>
void split(void (*kernel)(const Call&, int64_t, int64_t), const Call& call, int64_t count,
           int64_t width, int threads) {
    if (count == 0) return;
    const double elements = static_cast<double>(count) * static_cast<double>(width);
    for_each_part(count, useful_threads(elements, count, threads),
                  [&](int /*part*/, int64_t begin, int64_t end) { kernel(call, begin, end); });
}

}  // namespace

void norm_rows(const Norm& norm, int64_t rows, int threads) {
    split(kernels().rows->norm, norm, rows, norm.columns, threads);
}

void norm_gradient_rows(const NormGradient& gradient, int64_t rows, int threads) {
    split(kernels().rows->norm_gradient, gradient, rows, gradient.columns, threads);
}

void gate_values(const Gated& gated, int64_t values, int threads) {
    const RowKernels& rows = *kernels().rows;
    split(gated.grad == nullptr ? rows.gated : rows.gated_gradient, gated, values, 1, threads);
}

void rotate_rows(const Rotation& rotation, int64_t rows, int threads) {
    split(kernels().rows->rotate, rotation, rows, rotation.heads * rotation.head_dim, threads);
}

}  // namespace clara
