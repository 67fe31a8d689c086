#include "core/linear/linear.hpp"

#include <algorithm>

#include "core/aligned_bytes.hpp"
#include "core/parallel.hpp"
#include "core/round_up.hpp"
#include "core/simd/kernels.hpp"

namespace clara {
namespace {

constexpr double kWorkOfElement = 32;  // products in the time of one element of other work

double elements(int64_t rows, int64_t inputs, int64_t outputs) {
    return static_cast<double>(rows) * static_cast<double>(inputs) * static_cast<double>(outputs) /
           kWorkOfElement;
}

}  // namespace

bool multiplies_bfloat16() { return kernels().linear != nullptr; }

void adapted_linear(const AdaptedLinear& call, int64_t rows, int threads) {
    if (rows == 0 || call.outputs == 0) return;
    const LinearKernels& kernel = *kernels().linear;
    const int64_t blocks = div_up(rows, kLinearRows);
    const int64_t parts = div_up(call.outputs, kLinearOutputs);
    // Rows are split where there are enough: each thread then packs its own only.
    const bool by_rows = blocks >= 2 * static_cast<int64_t>(threads);
    const int64_t pieces = by_rows ? blocks : parts, unit = by_rows ? kLinearRows : kLinearOutputs;
    for_each_part(
        pieces, useful_threads(elements(rows, call.inputs, call.outputs), pieces, threads),
        [&](int /*part*/, int64_t begin, int64_t end) {
            LinearPart part{0, rows, 0, call.outputs};
            (by_rows ? part.first_row : part.first_output) = begin * unit;
            int64_t& last = by_rows ? part.last_row : part.last_output;
            last = std::min(last, end * unit);
            AlignedBytes scratch(kernel.scratch_bytes(call, part.last_row - part.first_row));
            kernel.multiply(call, part, scratch.data());
        });
}

void linear_gradient(const LinearGradient& call, int64_t rows, int threads) {
    if (rows == 0) return;
    const LinearGradientKernels& kernel = *kernels().linear_gradient;
    const int64_t pieces = div_up(rows, kLinearRows);
    for_each_part(pieces,
                  useful_threads(elements(rows, call.inputs, call.outputs), pieces, threads),
                  [&](int /*part*/, int64_t begin, int64_t end) {
                      AlignedBytes scratch(kernel.scratch_bytes(call));
                      kernel.multiply(call, begin * kLinearRows, std::min(rows, end * kLinearRows),
                                      scratch.data());
                  });
}

void thin_product(const ThinProduct& call, int threads) {
    if (call.columns == 0) return;
    const ThinProductKernels& kernel = *kernels().thin_product;
    const int64_t pieces = div_up(call.columns, kThinColumns);
    for_each_part(pieces,
                  useful_threads(elements(call.rows, call.columns, call.rank), pieces, threads),
                  [&](int /*part*/, int64_t begin, int64_t end) {
                      const int64_t first = begin * kThinColumns;
                      const int64_t last = std::min(call.columns, end * kThinColumns);
                      AlignedBytes scratch(kernel.scratch_bytes(call, last - first));
                      kernel.multiply(call, first, last, scratch.data());
                  });
}

}  // namespace clara
