#include "core/elementwise/elementwise.hpp"

#include <string>

#include "core/parallel.hpp"
#include "core/simd/kernels.hpp"

namespace clara {

extern const RowKernels kPlainRows, kAvx2Rows, kAvx512Rows;

const RowKernels& row_kernels() {
#if defined(__x86_64__)
    const Kernels* chosen = &kernels();
    bool reached = false;
    const std::vector<const Kernels*>& available = available_kernels();
    for (auto each = available.rbegin(); each != available.rend(); ++each) {
        reached = reached || *each == chosen;
        if (reached && (*each)->name == std::string("avx512")) return kAvx512Rows;
        if (reached && (*each)->name == std::string("avx2")) return kAvx2Rows;
    }
#endif
    return kPlainRows;
}

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
    split(row_kernels().norm, norm, rows, norm.columns, threads);
}

void norm_gradient_rows(const NormGradient& gradient, int64_t rows, int threads) {
    split(row_kernels().norm_gradient, gradient, rows, gradient.columns, threads);
}

void gate_values(const Gated& gated, int64_t values, int threads) {
    const RowKernels& kernels = row_kernels();
    split(gated.grad == nullptr ? kernels.gated : kernels.gated_gradient, gated, values, 1,
          threads);
}

void rotate_rows(const Rotation& rotation, int64_t rows, int threads) {
    split(row_kernels().rotate, rotation, rows, rotation.heads * rotation.head_dim, threads);
}

}  // namespace clara
