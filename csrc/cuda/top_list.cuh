#pragma once

#include <cstdint>

#include "cuda/values.cuh"

namespace clara {

/// A score and its row in one number: the larger, the better. The upper half orders scores as
/// integers, 1 stands for NaN; the lower is ~row, so that the lower of two equal rows is better. 0
/// is no row at all.
using Key = unsigned long long;

constexpr uint32_t kNanOrder = 1;
constexpr uint32_t kUnknownOrder = 0xffffffffu;  // above every score: it has yet to be computed
constexpr float kExtremeNorm = -1.0f;            // what stands for 1/|row| of such a row

__device__ inline Key make_key(uint32_t order, uint32_t row) {
    return static_cast<Key>(order) << 32 | static_cast<uint32_t>(~row);
}

__device__ inline uint32_t order_of(float score) {
    if (score != score) return kNanOrder;
    const float clamped = fminf(fmaxf(score, -1.0f), 1.0f) + 0.0f;  // + 0 makes -0 equal to 0
    const uint32_t bits = __float_as_uint(clamped);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

__device__ inline float score_of(Key key) {
    const uint32_t order = static_cast<uint32_t>(key >> 32);
    if (order == 0) return -infinity();
    if (order == kNanOrder) return __uint_as_float(0x7fc00000u);
    return __uint_as_float((order & 0x80000000u) != 0 ? order ^ 0x80000000u : ~order);
}

__device__ inline uint32_t row_of(Key key) { return ~static_cast<uint32_t>(key); }

/// No score below this can enter a list whose worst key is `key`, be it before it is clamped to
/// [-1, 1]; NaN is to be looked at.
__device__ inline float threshold_of(Key key) {
    const float score = key >> 32 <= kNanOrder ? -infinity() : score_of(key);
    return score > -1.0f ? score : -infinity();
}

/// The best `size` keys so far as a binary heap, the worst at its root; at first all are 0.
struct Heap {
    Key* keys;
    int stride;
    int size;

    __device__ Key root() const { return keys[0]; }

    __device__ void offer(Key key) {
        if (key <= keys[0]) return;
        int hole = 0;
        for (;;) {
            int child = 2 * hole + 1;
            if (child >= size) break;
            Key least = keys[static_cast<int64_t>(child) * stride];
            if (child + 1 < size) {
                const Key other = keys[static_cast<int64_t>(child + 1) * stride];
                if (other < least) {
                    least = other;
                    ++child;
                }
            }
            if (least >= key) break;
            keys[static_cast<int64_t>(hole) * stride] = least;
            hole = child;
        }
        keys[static_cast<int64_t>(hole) * stride] = key;
    }
};

__device__ inline double sum_of_lanes(double value) {
    CLARA_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, offset);
    }
    return value;
}

/// The cosine in float64, computed by a whole warp.
__device__ inline float exact_cosine(const DeviceRows& queries, int64_t query,
                                     const DeviceRows& corpus, int64_t row) {
    const uint8_t* a = queries.row(query);
    const uint8_t* b = corpus.row(row);
    double products = 0, a_squares = 0, b_squares = 0;
    CLARA_NO_UNROLL
    for (int64_t i = threadIdx.x % 32; i < corpus.columns; i += 32) {
        const double x = load_element(a, queries.type, i), y = load_element(b, corpus.type, i);
        products += x * y;
        a_squares += x * x;
        b_squares += y * y;
    }
    products = sum_of_lanes(products);
    const double norms = sqrt(sum_of_lanes(a_squares)) * sqrt(sum_of_lanes(b_squares));
    return norms == 0 ? 0.0f : static_cast<float>(products / norms);
}

/// Keys that wait to be put into a lane's heap: entry i lies at keys[i * stride].
struct Waiting {
    const Key* keys;
    int stride;
    int count;
};

/// Puts each lane's waiting keys into its heap. Called by whole warps: they compute the scores that
/// are unknown. Returns the best key of the lane.
__device__ inline Key drain(const Waiting& waiting, Heap heap, int64_t query,
                            const DeviceRows& queries, const DeviceRows& corpus) {
    const int lane = threadIdx.x % 32;
    Key best = 0;
    CLARA_NO_UNROLL
    for (int i = 0; __any_sync(kAllLanes, i < waiting.count); ++i) {
        Key key = 0;
        if (i < waiting.count) key = waiting.keys[static_cast<int64_t>(i) * waiting.stride];
        const bool unknown = key >> 32 == kUnknownOrder;
        unsigned left = __ballot_sync(kAllLanes, unknown);
        CLARA_NO_UNROLL
        for (; left != 0; left &= left - 1) {
            const int owner = __ffs(left) - 1;
            const uint32_t row = __shfl_sync(kAllLanes, row_of(key), owner);
            const int64_t of = __shfl_sync(kAllLanes, static_cast<long long>(query), owner);
            const float score = exact_cosine(queries, of, corpus, row);
            if (lane == owner) key = make_key(order_of(score), row);
        }
        if (i < waiting.count) {
            heap.offer(key);
            best = key > best ? key : best;
        }
    }
    return best;
}

}  // namespace clara
