// Products of bfloat16 values, two of which are added to each float32 sum, for matrices as they are
// stored. As in core/simd/tile.hpp, all is in an unnamed namespace and uses nothing of the standard
// library.

#include <immintrin.h>

#include <cstdint>

namespace clara {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kMostGroups = 4;  // of lanes
constexpr int64_t kLine = 64;       // bytes of a cache line, and of 16 pairs of values
constexpr int kSums = 24;           // registers of sums
constexpr int64_t kLineSteps = 16;  // pairs of values in a cache line

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline __m512bh as_pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

inline __m512bh load_pairs(const char* values) { return as_pairs(_mm512_loadu_si512(values)); }

/// Two values, for each lane.
inline __m512bh repeat_pair(const char* values) {
    int32_t pair = 0;
    __builtin_memcpy(&pair, values, sizeof(pair));
    return as_pairs(_mm512_set1_epi32(pair));
}

/// 16 values as bfloat16.
inline __m256i rounded(__m512 values) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
}

/// For each lane two values of 16 bits, which products then add up.
inline __m512i interleaved(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

/// The first `count` of 16 lanes.
inline __mmask16 first_lanes(int64_t count) {
    return count >= kLanes ? static_cast<__mmask16>(0xffff)
                           : static_cast<__mmask16>((1u << (count < 0 ? 0 : count)) - 1);
}

/// Exchanges rows and lanes.
inline void transpose(__m512i (&rows)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/// Writes 16 columns of 32 rows of bfloat16 values as 16 rows, `stride_bytes` from one to the next.
/// `row(i)` returns the 16 values of the i-th row.
template <class Row>
__attribute__((always_inline)) inline void transpose_rows(const Row& row, char* out,
                                                          int64_t stride_bytes) {
    __m512i pairs[16];
    for (int64_t i = 0; i < kLanes; ++i) pairs[i] = interleaved(row(2 * i), row(2 * i + 1));
    transpose(pairs);
    for (int64_t i = 0; i < kLanes; ++i) _mm512_storeu_si512(out + i * stride_bytes, pairs[i]);
}

/// Packs `count` of up to 16 rows of an even number of values: pair after pair of columns, these
/// two values of one row after another, `groups` lines from one pair to the next.
inline void pack_rows(const char* rows, int64_t stride_bytes, int64_t count, int64_t columns,
                      int64_t groups, char* out) {
    for (int64_t column = 0; column < columns; column += 2 * kLanes) {
        const int64_t steps = least(kLanes, (columns - column) / 2);
        const __mmask16 mask = first_lanes(steps);
        __m512i block[16];
        for (int64_t i = 0; i < kLanes; ++i) {
            block[i] = i < count
                           ? _mm512_maskz_loadu_epi32(mask, rows + i * stride_bytes + 2 * column)
                           : _mm512_setzero_si512();
        }
        transpose(block);
        for (int64_t step = 0; step < steps; ++step) {
            _mm512_storeu_si512(out + (column / 2 + step) * groups * kLine, block[step]);
        }
    }
}

/// sum[j][g] += the products of rows with packed lanes, over pairs of columns. Of each row the
/// line at `ahead` is brought towards the cache meanwhile, unless that is null.
template <int kRows, int kGroups>
__attribute__((always_inline)) inline void add_products(__m512 (&sum)[kRows][kGroups],
                                                        const char* packed,
                                                        const char* const (&row)[kRows],
                                                        int64_t steps, const char* ahead,
                                                        int64_t ahead_stride) {
    for (int64_t step = 0; step < steps;) {
        const int64_t end = least(steps, step + kLineSteps);
        if (ahead != nullptr) {
            for (int j = 0; j < kRows; ++j) {
                __builtin_prefetch(ahead + j * ahead_stride + 4 * step, 0, 2);
            }
        }
        for (; step < end; ++step) {
            __m512bh lanes[kGroups];
#pragma GCC unroll 4
            for (int g = 0; g < kGroups; ++g) lanes[g] = load_pairs(packed + g * kLine);
            packed += kGroups * kLine;
#pragma GCC unroll 24
            for (int j = 0; j < kRows; ++j) {
                const __m512bh pair = repeat_pair(row[j] + 4 * step);
#pragma GCC unroll 4
                for (int g = 0; g < kGroups; ++g) {
                    sum[j][g] = _mm512_dpbf16_ps(sum[j][g], lanes[g], pair);
                }
            }
        }
    }
}

template <int kRows, int kGroups>
__attribute__((always_inline)) inline void clear(__m512 (&sum)[kRows][kGroups]) {
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) {
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) sum[j][g] = _mm512_setzero_ps();
    }
}

/// Reads rows of sums, `stride` values from one to the next.
template <int kRows, int kGroups>
__attribute__((always_inline)) inline void load(__m512 (&sum)[kRows][kGroups], const float* from,
                                                int64_t stride) {
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) {
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) {
            sum[j][g] = _mm512_loadu_ps(from + j * stride + g * kLanes);
        }
    }
}

/// Writes the first `count` rows of sums likewise; by default all.
template <int kRows, int kGroups>
__attribute__((always_inline)) inline void store(const __m512 (&sum)[kRows][kGroups], float* to,
                                                 int64_t stride, int64_t count = kRows) {
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) {
        if (j >= count) break;
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(to + j * stride + g * kLanes, sum[j][g]);
    }
}

}  // namespace
}  // namespace clara
