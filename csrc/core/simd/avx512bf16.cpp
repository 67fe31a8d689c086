// AVX-512 with products of bfloat16 values, two of which are added to each float32 sum. They find
// the rows that may be among the best; scores come from float32, as without them.

#include "core/simd/screen.hpp"
#include "core/simd/vector_avx512.hpp"

namespace clara {
namespace {

__m512bh load_bfloat16(const char* values) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(values));
}

/// Two values of a row, for each query of a group.
__m512bh repeat_pair(const char* values) {
    int32_t pair = 0;
    __builtin_memcpy(&pair, values, sizeof(pair));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

constexpr int64_t kGroupBytes = int64_t{kScreenQueries} * 4;  // of a pair of columns

}  // namespace
}  // namespace clara

#include "core/simd/tile.hpp"

namespace clara {
namespace {

/// All sums are in registers, with queries along their lanes, so that none has to be added up.
template <int kRows, int kGroups>
void multiply_rows(const ScreenTile& tile, const char* rows, float* sums, const char* const* ahead,
                   int64_t ahead_count) {
    const int64_t steps = tile.steps, row_stride = tile.row_stride, sums_stride = tile.sums_stride;
    constexpr int kAhead = kGroups == 1 ? 2 : 1;  // lines brought towards the cache in a step
    __m512 sum[kRows][kGroups];
    const char* row[kRows];
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) {
        row[j] = rows + j * row_stride;
        CLARA_UNROLL for (int g = 0; g < kGroups; ++g) sum[j][g] = _mm512_setzero_ps();
    }
    const char* queries = tile.queries;
    for (int64_t step = 0; step < steps; ++step) {
        __m512bh query[kGroups];
        CLARA_UNROLL for (int g = 0; g < kGroups; ++g) {
            query[g] = load_bfloat16(queries + g * kGroupBytes);
        }
        queries += kGroups * kGroupBytes;
        for (int line = 0; line < kAhead && ahead_count > 0; ++line) {
            __builtin_prefetch(*ahead++, 0, 2);
            --ahead_count;
        }
#pragma GCC unroll 24
        for (int j = 0; j < kRows; ++j) {
            const __m512bh pair = repeat_pair(row[j] + 4 * step);
            CLARA_UNROLL for (int g = 0; g < kGroups; ++g) {
                sum[j][g] = _mm512_dpbf16_ps(sum[j][g], query[g], pair);
            }
        }
    }
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) {
        CLARA_UNROLL for (int g = 0; g < kGroups; ++g) {
            float* to = sums + j * sums_stride + int64_t{g} * kScreenQueries;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum[j][g]));
        }
    }
}

/// 24 of 32 registers are sums.
template <int kGroups>
void multiply_groups(const ScreenTile& tile) {
    constexpr int kRows = kScreenRows / kGroups;
    for (int64_t j = 0; j < kScreenRows; j += kRows) {
        const int64_t begin = tile.ahead_count * j / kScreenRows;
        const int64_t end = tile.ahead_count * (j + kRows) / kScreenRows;
        multiply_rows<kRows, kGroups>(tile, tile.rows + j * tile.row_stride,
                                      tile.sums + j * tile.sums_stride, tile.ahead + begin,
                                      end - begin);
    }
}

void multiply(const ScreenTile& tile) {
    switch (tile.groups) {
        case 1:
            return multiply_groups<1>(tile);
        case 2:
            return multiply_groups<2>(tile);
        case 3:
            return multiply_groups<3>(tile);
        default:
            return multiply_groups<4>(tile);
    }
}

/// Writes 16 values as bfloat16; returns what rounding changed.
__m512 round_some(__m512 values, __mmask16 mask, char* out) {
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
    _mm256_mask_storeu_epi16(out, mask, rounded);
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
    return _mm512_sub_ps(values, _mm512_castsi512_ps(bits));
}

template <DataType type>
float round(const char* values, int64_t count, char* out) {
    using Dot = FloatDot<type, false>;
    constexpr int64_t kSome = Dot::kColumns;
    __m512 squares[2] = {};
    int64_t i = 0;
    for (; i + 2 * kSome <= count; i += 2 * kSome) {
        CLARA_UNROLL for (int64_t p = 0; p < 2; ++p) {
            const int64_t first = i + p * kSome;
            const __m512 value = Dot::load(values + first * Dot::kItemSize);
            const __m512 change = round_some(value, 0xffff, out + 2 * first);
            squares[p] = _mm512_fmadd_ps(change, change, squares[p]);
        }
    }
    for (; i < count; i += kSome) {
        const int64_t left = count - i < kSome ? count - i : kSome;
        alignas(64) char rest[kSome * Dot::kItemSize] = {};
        __builtin_memcpy(rest, values + i * Dot::kItemSize, left * Dot::kItemSize);
        const auto mask = static_cast<__mmask16>((1u << left) - 1);
        const __m512 change = round_some(Dot::load(rest), mask, out + 2 * i);
        squares[0] = _mm512_fmadd_ps(change, change, squares[0]);
    }
    float sums[kTileRows] = {};
    const __m512 zero = _mm512_setzero_ps();
    Vector::add_sums(squares[0], squares[1], zero, zero, sums);
    return sums[0] + sums[1];
}

int filter(const float* sums, float inverse_norm, const float* floors, int count, uint16_t* found) {
    const __m512 scale = _mm512_set1_ps(inverse_norm);
    int passed = 0;
    for (int i = 0; i < count; i += 16) {
        const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(sums + i), scale);
        unsigned bits = _mm512_cmp_ps_mask(score, _mm512_loadu_ps(floors + i), _CMP_GE_OQ);
        for (; bits != 0; bits &= bits - 1) {
            found[passed++] = static_cast<uint16_t>(i + __builtin_ctz(bits));
        }
    }
    return passed;
}

template <DataType type>
void exact(const OneQuery& work) {
    Tile tile{};
    tile.queries = work.query;
    tile.query_count = 1;
    tile.columns = work.columns;
    tile.sums = work.sums;
    for (int j = 0; j < kTileRows; ++j) {
        tile.rows[j] = work.rows[j];
        tile.ahead[j] = work.rows[j];
    }
    multiply<FloatDot<type, false>, 1>(tile);
}

}  // namespace

extern const ScreenKernels kAvx512Screen;
const ScreenKernels kAvx512Screen = {
    multiply,
    {round<DataType::float32>, round<DataType::float16>},
    filter,
    {exact<DataType::float32>, exact<DataType::float16>, exact<DataType::bfloat16>}};

}  // namespace clara
