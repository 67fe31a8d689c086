#pragma once

#include <cstdint>

#include "core/rows.hpp"
#include "cuda/cosine_topk.hpp"
#include "cuda/mma.cuh"

namespace clara {

constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

/// What kernels see of a matrix: its rows as bytes.
struct DeviceRows {
    const uint8_t* data;
    DataType type;
    bool aligned;  // every row starts at a multiple of 16 bytes
    int64_t count;
    int64_t columns;
    int64_t stride;  // bytes

    explicit DeviceRows(const CudaRows& rows)
        : data(static_cast<const uint8_t*>(rows.data)),
          type(rows.type),
          count(rows.count),
          columns(rows.columns),
          stride(rows.stride * item_size(rows.type)) {
        aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && (stride % 16 == 0 || count <= 1);
    }

    template <class Row>
    __device__ int row_bytes() const {
        return static_cast<int>(columns) * (16 / Row::kVector);
    }
    __device__ const uint8_t* row(int64_t index) const { return data + index * stride; }
};

__device__ inline float bfloat16_to_float(uint32_t bits) { return __uint_as_float(bits << 16); }

/// Rounds to nearest even; finite values only.
__device__ inline uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = __float_as_uint(value);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// 256 * high + low in float32, rounded once, of sums over at most 65,536 columns.
__device__ inline float dot_of_codes(int high, int low) {
    high += low >> 8;
    const int upper = high >> 8, lower = (high & 255) << 8 | (low & 255);  // both exact in float32
    return __fmaf_rn(static_cast<float>(upper), 65536.0f, static_cast<float>(lower));
}

/// One element of a row, as float32. Every conversion is exact.
__device__ inline float load_element(const uint8_t* row, DataType type, int64_t column) {
    switch (type) {
        case DataType::float32:
            return reinterpret_cast<const float*>(row)[column];
        case DataType::float16:
            return float16_to_float(reinterpret_cast<const uint16_t*>(row)[column]);
        case DataType::bfloat16:
            return bfloat16_to_float(reinterpret_cast<const uint16_t*>(row)[column]);
        default:
            return reinterpret_cast<const int8_t*>(row)[column];
    }
}

// Element types of rows as they lie in 16-byte vectors. `element` is for an i known to the
// compiler.

__device__ inline uint32_t word_of(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

struct Float32Row {
    static constexpr int kVector = 4;  // elements in 16 bytes
    static __device__ float element(const uint4& v, int i) {
        return __uint_as_float(word_of(v, i));
    }
};

struct Bfloat16Row {
    static constexpr int kVector = 8;
    static __device__ float element(const uint4& v, int i) {
        const uint32_t word = word_of(v, i / 2);
        return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    }
};

struct Float16Row {
    static constexpr int kVector = 8;
    static __device__ float element(const uint4& v, int i) {
        return float16_to_float(static_cast<uint16_t>(word_of(v, i / 2) >> (i % 2 * 16)));
    }
};

struct Int8Row {
    static constexpr int kVector = 16;
};

/// 16 bytes of a row from byte `offset`, element by element, zeros beyond its end.
template <class Row>
__device__ inline uint4 load_elements(const uint8_t* row, int offset, int row_bytes) {
    constexpr int kItem = 16 / Row::kVector;
    uint32_t words[4] = {0, 0, 0, 0};
    CLARA_UNROLL
    for (int i = 0; i < Row::kVector; ++i) {
        const int at = offset + i * kItem;
        if (at >= row_bytes) break;
        uint32_t bits;
        if (kItem == 4) {
            bits = *reinterpret_cast<const uint32_t*>(row + at);
        } else if (kItem == 2) {
            bits = *reinterpret_cast<const uint16_t*>(row + at);
        } else {
            bits = row[at];
        }
        words[i * kItem / 4] |= bits << (i * kItem % 4 * 8);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

/// The same of several rows, by single loads where that is possible; zeros of rows that are null.
template <class Row, int kRows>
__device__ inline void load_vectors(const uint8_t* const (&rows)[kRows], int offset, int row_bytes,
                                    bool aligned, uint4 (&out)[kRows]) {
    const bool whole = aligned && offset + 16 <= row_bytes;
    CLARA_UNROLL
    for (int r = 0; r < kRows; ++r) {
        out[r] = load_streaming(rows[r] + offset, whole && rows[r] != nullptr);
    }
    if (whole || offset >= row_bytes) return;
    CLARA_UNROLL
    for (int r = 0; r < kRows; ++r) {
        if (rows[r] != nullptr) out[r] = load_elements<Row>(rows[r], offset, row_bytes);
    }
}

}  // namespace clara
