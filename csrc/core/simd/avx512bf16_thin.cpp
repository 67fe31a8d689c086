// Products of a wide matrix with a thin one over their rows, by AVX-512's products of bfloat16
// values. Two rows of the wide one are interleaved as they are read; the thin one is transposed.

#include "core/simd/dot_bfloat16.hpp"
#include "core/simd/linear.hpp"

namespace clara {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // whose thin values are transposed together
constexpr int64_t kColumnGroups = kThinColumns / kLanes;
constexpr int kSumRows = 8;  // thin columns that are summed together
constexpr int64_t kThinBytes = kRowsAtOnce * 2;
static_assert(kColumnGroups == 2);

int64_t whole_lanes(int64_t rank) { return (rank + kLanes - 1) / kLanes * kLanes; }

int64_t scratch_bytes(const ThinProduct& call, int64_t columns) {
    const int64_t blocks = (columns + kThinColumns - 1) / kThinColumns;
    return whole_lanes(call.rank) *
           (kThinBytes + blocks * kThinColumns * static_cast<int64_t>(sizeof(float)));
}

/// Writes columns of `count` thin rows as rows of kRowsAtOnce values, 0 behind the last ones.
void transpose_thin(const ThinProduct& call, int64_t first, int64_t count, char* out) {
    for (int64_t column = 0; column < call.rank; column += kLanes) {
        const __mmask16 mask = first_lanes(call.rank - column);
        const auto values = [&](int64_t row) {
            const char* from = call.thin + ((first + row) * call.rank + column) * 2;
            return row < count ? _mm256_maskz_loadu_epi16(mask, from) : _mm256_setzero_si256();
        };
        for (int64_t row = 0; row < kRowsAtOnce; row += 2 * kLanes) {
            transpose_rows([&](int64_t i) { return values(row + i); },
                           out + column * kThinBytes + row * 2, kThinBytes);
        }
    }
}

/// Some rows of a block of columns of the wide matrix.
struct WideRows {
    const char* first;
    int64_t stride, count;
    __mmask16 pairs;  // of columns

    __m512i row(int64_t i) const {
        return i < count ? _mm512_maskz_loadu_epi32(pairs, first + i * stride)
                         : _mm512_setzero_si512();
    }
};

/// Adds to kSumRows rows of sums. Columns are in the order in which two rows are interleaved.
void add_rows(const WideRows& wide, const char* thin, float* sums) {
    __m512 sum[kSumRows][kColumnGroups];
    load(sum, sums, kThinColumns);
    for (int64_t row = 0; row < wide.count; row += 2) {
        const __m512i one = wide.row(row), other = wide.row(row + 1);
        const __m512bh pairs[kColumnGroups] = {as_pairs(_mm512_unpacklo_epi16(one, other)),
                                               as_pairs(_mm512_unpackhi_epi16(one, other))};
#pragma GCC unroll 8
        for (int j = 0; j < kSumRows; ++j) {
            const __m512bh pair = repeat_pair(thin + j * kThinBytes + row * 2);
#pragma GCC unroll 2
            for (int g = 0; g < kColumnGroups; ++g) {
                sum[j][g] = _mm512_dpbf16_ps(sum[j][g], pairs[g], pair);
            }
        }
    }
    store(sum, sums, kThinColumns);
}

/// Puts a row of sums into the order of columns.
void order(float* sums) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const __m512 low = _mm512_loadu_ps(sums), high = _mm512_loadu_ps(sums + kLanes);
    _mm512_storeu_ps(sums, _mm512_permutex2var_ps(low, first, high));
    _mm512_storeu_ps(sums + kLanes, _mm512_permutex2var_ps(low, second, high));
}

/// Writes ordered sums [rank, kThinColumns] to `count` columns of the result.
void store_rows(const ThinProduct& call, const float* sums, int64_t column, int64_t count) {
    for (int64_t r = 0; r < call.rank; ++r) {
        for (int64_t i = 0; i < count; i += kLanes) {
            _mm512_mask_storeu_ps(call.out + r * call.columns + column + i, first_lanes(count - i),
                                  _mm512_loadu_ps(sums + r * kThinColumns + i));
        }
    }
}

/// The same of the transposed result.
void store_columns(const ThinProduct& call, const float* sums, int64_t column, int64_t count) {
    for (int64_t r = 0; r < call.rank; r += kLanes) {
        for (int64_t i = 0; i < count; i += kLanes) {
            __m512i values[16];
            for (int64_t j = 0; j < kLanes; ++j) {
                values[j] = _mm512_loadu_si512(sums + (r + j) * kThinColumns + i);
            }
            transpose(values);
            for (int64_t j = 0; j < least(kLanes, count - i); ++j) {
                _mm512_mask_storeu_epi32(call.out + (column + i + j) * call.rank + r,
                                         first_lanes(call.rank - r), values[j]);
            }
        }
    }
}

void multiply(const ThinProduct& call, int64_t begin, int64_t end, char* memory) {
    const int64_t lanes = whole_lanes(call.rank), stride = call.columns * 2;
    const int64_t block = lanes * kThinColumns;
    char* thin = memory;
    auto* sums = reinterpret_cast<float*>(memory + lanes * kThinBytes);
    __builtin_memset(memory, 0, scratch_bytes(call, end - begin));
    for (int64_t row = 0; row < call.rows; row += kRowsAtOnce) {
        const int64_t count = least(kRowsAtOnce, call.rows - row);
        transpose_thin(call, row, count, thin);
        for (int64_t column = begin; column < end; column += kThinColumns) {
            const WideRows wide{call.wide + row * stride + column * 2, stride, count,
                                first_lanes((end - column) / 2)};
            for (int64_t r = 0; r < call.rank; r += kSumRows) {
                add_rows(wide, thin + r * kThinBytes,
                         sums + (column - begin) / kThinColumns * block + r * kThinColumns);
            }
        }
    }
    for (int64_t column = begin; column < end; column += kThinColumns) {
        float* own = sums + (column - begin) / kThinColumns * block;
        for (int64_t r = 0; r < call.rank; ++r) order(own + r * kThinColumns);
        const int64_t count = least(kThinColumns, end - column);
        if (call.transposed) {
            store_columns(call, own, column, count);
        } else {
            store_rows(call, own, column, count);
        }
    }
}

}  // namespace

extern const ThinProductKernels kAvx512ThinProduct;
const ThinProductKernels kAvx512ThinProduct = {scratch_bytes, multiply};

}  // namespace clara
