// Gradients of linear layers with adapters, by AVX-512's products of bfloat16 values. Columns of
// weights are packed along lanes, two rows at a time; rows of gradients are read as they are
// stored.

#include "core/simd/dot_bfloat16.hpp"
#include "core/simd/linear.hpp"

namespace clara {
namespace {

constexpr int64_t kPanelColumns = kMostGroups * kLanes;

/// Rows of values that are multiplied with a panel of as many rows as these have columns.
struct Factor {
    const char* rows;
    int64_t columns;
    const char* panel;
};

/// Columns of the result that are computed together.
struct Columns {
    int64_t count;

    int64_t groups() const { return (count + kLanes - 1) / kLanes; }
};

/// Packs `rows` rows of a matrix, an even number, from one of its columns on.
void pack_panel(const char* matrix, int64_t stride_bytes, int64_t rows, const Columns& columns,
                char* out) {
    for (int64_t row = 0; row < rows; row += 2) {
        const char* pair = matrix + row * stride_bytes;
        for (int64_t column = 0; column < columns.count; column += kLanes) {
            const __mmask16 mask = first_lanes(columns.count - column);
            const char* values = pair + 2 * column;
            _mm512_storeu_si512(out,
                                interleaved(_mm256_maskz_loadu_epi16(mask, values),
                                            _mm256_maskz_loadu_epi16(mask, values + stride_bytes)));
            out += kLine;
        }
    }
}

/// Writes (first + second) · factor for kRows rows, of which `count` are there.
template <int kRows, int kGroups>
void multiply_tile(const Factor& first, const Factor& second, int64_t count, float factor,
                   const Columns& columns, char* out, int64_t out_stride) {
    __m512 sum[kRows][kGroups];
    const char* row[kRows];
    clear(sum);
    const int64_t stride = first.columns * 2;
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) row[j] = first.rows + least(j, count - 1) * stride;
    add_products<kRows, kGroups>(sum, first.panel, row, first.columns / 2,
                                 first.rows + kRows * stride, stride);
    if (second.columns > 0) {
#pragma GCC unroll 24
        for (int j = 0; j < kRows; ++j) {
            row[j] = second.rows + least(j, count - 1) * second.columns * 2;
        }
        add_products<kRows, kGroups>(sum, second.panel, row, second.columns / 2, nullptr, 0);
    }
    const __m512 scale = _mm512_set1_ps(factor);
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) {
        if (j >= count) break;
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) {
            _mm256_mask_storeu_epi16(out + j * out_stride + g * kLanes * 2,
                                     first_lanes(columns.count - g * kLanes),
                                     rounded(_mm512_mul_ps(sum[j][g], scale)));
        }
    }
}

template <int kGroups>
void multiply_rows(const Factor& first, const Factor& second, int64_t rows, float factor,
                   const Columns& columns, char* out, int64_t out_stride) {
    constexpr int kRows = kSums / kGroups;
    for (int64_t row = 0; row < rows; row += kRows) {
        const Factor own{first.rows + row * first.columns * 2, first.columns, first.panel};
        const Factor other{second.rows + row * second.columns * 2, second.columns, second.panel};
        multiply_tile<kRows, kGroups>(own, other, rows - row, factor, columns,
                                      out + row * out_stride, out_stride);
    }
}

void multiply_panel(const Factor& first, const Factor& second, int64_t rows, float factor,
                    const Columns& columns, char* out, int64_t out_stride) {
    switch (columns.groups()) {
        case 1:
            return multiply_rows<1>(first, second, rows, factor, columns, out, out_stride);
        case 2:
            return multiply_rows<2>(first, second, rows, factor, columns, out, out_stride);
        case 3:
            return multiply_rows<3>(first, second, rows, factor, columns, out, out_stride);
        default:
            return multiply_rows<4>(first, second, rows, factor, columns, out, out_stride);
    }
}

int64_t scratch_bytes(const LinearGradient& call) {
    return (call.outputs + call.rank) * kPanelColumns * 2;
}

void multiply(const LinearGradient& call, int64_t begin, int64_t end, char* memory) {
    const int64_t rows = end - begin, rank_bytes = call.rank * 2, bytes = call.inputs * 2;
    char* beside = memory + call.outputs * kPanelColumns * 2;
    const char* grad = call.grad + begin * call.outputs * 2;
    char* thin = call.thin + begin * rank_bytes;
    for (int64_t column = 0; column < call.rank; column += kPanelColumns) {
        const Columns columns{least(kPanelColumns, call.rank - column)};
        pack_panel(call.up + 2 * column, rank_bytes, call.outputs, columns, memory);
        multiply_panel({grad, call.outputs, memory}, {nullptr, 0, nullptr}, rows, call.scaling,
                       columns, thin + 2 * column, rank_bytes);
    }
    for (int64_t column = 0; column < call.inputs; column += kPanelColumns) {
        const Columns columns{least(kPanelColumns, call.inputs - column)};
        pack_panel(call.weight + 2 * column, bytes, call.outputs, columns, memory);
        pack_panel(call.down + 2 * column, bytes, call.rank, columns, beside);
        multiply_panel({grad, call.outputs, memory}, {thin, call.rank, beside}, rows, 1, columns,
                       call.out + begin * bytes + 2 * column, bytes);
    }
}

}  // namespace

extern const LinearGradientKernels kAvx512LinearGradient;
const LinearGradientKernels kAvx512LinearGradient = {scratch_bytes, multiply};

}  // namespace clara
