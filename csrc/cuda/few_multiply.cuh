#pragma once

#include <type_traits>

#include "cuda/values.cuh"

namespace clara {

constexpr int kLanes = 8;  // that share a row

/// Sizes that depend on the type of rows and on how many queries a block has.
template <class Row, int kQueries>
struct Shape {
    static constexpr bool kCodes = Row::kVector == 16;
    static constexpr int kPlanes = kCodes ? 2 : 1;
    static constexpr int kRows = kCodes && kQueries == 8 ? 2 : 4;  // of each lane
    static constexpr int kWarpRows = kRows * 32 / kLanes;
    static constexpr int kStep = kLanes * Row::kVector;  // columns
    static constexpr int kSums = kRows * kQueries;
    static constexpr int kPart = Row::kVector == 8 && kQueries == 8 ? 2 : 4;  // columns at a time
    using Part = std::conditional_t<kPart == 2, float2, float4>;
    static constexpr int kOwn = kSums > kLanes ? kSums / kLanes : 1;  // of a lane after the sum
    static constexpr int kColumnBytes = kCodes ? 1 : 4;               // of a plane of queries
    // Sums over so many columns are added up in float64; or, codes, in float32, exact until then.
    static constexpr int kSegmentSteps = (kCodes ? 65536 : 2048) / kStep;
    using Sum = std::conditional_t<kCodes, int, float>;
    using Total = std::conditional_t<kCodes, float, double>;
};

/// Sums over the 8 lanes of a row. Each lane is left with kCount / 8 sums, from number
/// lane * kCount / 8 on, or with one that others have too. All are added in the same order.
template <int kCount, int kOffset, class Sum>
__device__ void add_lanes(Sum* sums, int lane) {
    if constexpr (kOffset > 0) {
        if constexpr (kCount > 1) {
            const bool upper = (lane & kOffset) != 0;
            CLARA_UNROLL
            for (int i = 0; i < kCount / 2; ++i) {
                const Sum given = upper ? sums[i] : sums[i + kCount / 2];
                const Sum kept = upper ? sums[i + kCount / 2] : sums[i];
                sums[i] = kept + __shfl_xor_sync(kAllLanes, given, kOffset);
            }
            add_lanes<kCount / 2, kOffset / 2>(sums, lane);
        } else {
            sums[0] += __shfl_xor_sync(kAllLanes, sums[0], kOffset);
            add_lanes<1, kOffset / 2>(sums, lane);
        }
    }
}

template <class Row, int kQueries>
struct Worker {
    using S = Shape<Row, kQueries>;
    using Sum = typename S::Sum;

    /// One step: a vector of each row by all queries, which lie `plane` bytes apart.
    static __device__ void multiply(const uint4 (&rows)[S::kRows], const uint8_t* queries,
                                    int plane, Sum (&sums)[S::kPlanes * S::kSums]) {
        if constexpr (S::kCodes) {
            CLARA_UNROLL
            for (int i = 0; i < kQueries * 2; ++i) {
                const int4 q = *reinterpret_cast<const int4*>(queries + i * plane);
                const int at = i % 2 * S::kSums + i / 2;
                CLARA_UNROLL
                for (int r = 0; r < S::kRows; ++r) {
                    int& sum = sums[at + r * kQueries];
                    sum = __dp4a(static_cast<int>(rows[r].x), q.x, sum);
                    sum = __dp4a(static_cast<int>(rows[r].y), q.y, sum);
                    sum = __dp4a(static_cast<int>(rows[r].z), q.z, sum);
                    sum = __dp4a(static_cast<int>(rows[r].w), q.w, sum);
                }
            }
        } else {
            CLARA_UNROLL
            for (int e = 0; e < Row::kVector; e += S::kPart) {
                float x[S::kRows][S::kPart];
                CLARA_UNROLL
                for (int r = 0; r < S::kRows; ++r) {
                    CLARA_UNROLL
                    for (int p = 0; p < S::kPart; ++p) x[r][p] = Row::element(rows[r], e + p);
                }
                CLARA_UNROLL
                for (int i = 0; i < kQueries; ++i) {
                    // Halves of 4 columns lie 8 lanes apart.
                    const auto q = *reinterpret_cast<const typename S::Part*>(
                        queries + i * plane + (e / 4 * 4 * kLanes + e % 4) * sizeof(float));
                    CLARA_UNROLL
                    for (int r = 0; r < S::kRows; ++r) {
                        float& sum = sums[r * kQueries + i];
                        sum = __fmaf_rn(x[r][0], q.x, sum);
                        sum = __fmaf_rn(x[r][1], q.y, sum);
                        if constexpr (S::kPart == 4) {
                            sum = __fmaf_rn(x[r][2], q.z, sum);
                            sum = __fmaf_rn(x[r][3], q.w, sum);
                        }
                    }
                }
            }
        }
    }

    /// Ends a segment of columns: adds the sums up over lanes, into the totals of their owners.
    static __device__ void flush(Sum (&sums)[S::kPlanes * S::kSums], int lane, bool is_first,
                                 typename S::Total* totals) {
        add_lanes<S::kSums, kLanes / 2>(sums, lane);
        if constexpr (S::kCodes) add_lanes<S::kSums, kLanes / 2>(sums + S::kSums, lane);
        CLARA_UNROLL
        for (int i = 0; i < S::kOwn; ++i) {
            typename S::Total sum;
            if constexpr (S::kCodes) {
                sum = dot_of_codes(sums[i], sums[S::kSums + i]);
            } else {
                sum = sums[i];
            }
            typename S::Total& total = totals[i * blockDim.x];
            total = is_first ? sum : total + sum;
        }
        CLARA_UNROLL
        for (int i = 0; i < S::kPlanes * S::kSums; ++i) sums[i] = 0;
    }
};

}  // namespace clara
