#include "cuda/launch.hpp"
#include "cuda/prepare.cuh"

namespace clara {
namespace {

constexpr int kThreads = 256;
constexpr int kLargestCode = 32639;  // 127 * 256 + 127
constexpr int kExponent = 14;        // pieces have a norm in [2^14, 2^15): float16 goes to 65504

struct BlockSum {
    double* warps;  // [kThreads / 32], shared

    /// The sum over all threads, in an order of its own; every thread gets it.
    __device__ double operator()(double value) const {
        value = sum_of_lanes(value);
        __syncthreads();
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
        __syncthreads();
        double sum = 0;
        for (int i = 0; i < kThreads / 32; ++i) sum += warps[i];
        return sum;
    }
    __device__ double largest(double value) const {
        CLARA_UNROLL
        for (int offset = 16; offset > 0; offset /= 2) {
            value = fmax(value, __shfl_xor_sync(kAllLanes, value, offset));
        }
        __syncthreads();
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
        __syncthreads();
        double most = 0;
        for (int i = 0; i < kThreads / 32; ++i) most = fmax(most, warps[i]);
        return most;
    }
};

/// Where column i of a unit query lies. A lane multiplies a vector of 8 columns in two halves of 4;
/// in shared memory the halves of 8 lanes follow each other, so that no two lanes meet in a bank.
__device__ int64_t unit_position(int64_t i, DataType type) {
    if (type == DataType::float32) return i;
    const int64_t block = i / 64 * 64;
    const int in_block = static_cast<int>(i % 64), lane = in_block / 8;
    return block + in_block % 8 / 4 * 32 + lane * 4 + in_block % 4;
}

__device__ uint16_t to_piece(float value, DataType type) {
    return type == DataType::float16 ? float_to_float16(value) : float_to_bfloat16(value);
}

__device__ float from_piece(uint16_t bits, DataType type) {
    return type == DataType::float16 ? float16_to_float(bits) : bfloat16_to_float(bits);
}

__device__ void write_units(const uint8_t* row, DataType type, int64_t columns, double norm,
                            const Prepared& to, uint8_t* out) {
    const double inverse = norm > 0 ? 1 / norm : 0;
    for (int64_t i = threadIdx.x; i < to.columns; i += kThreads) {
        const double x = i < columns ? load_element(row, type, i) : 0.0f;
        reinterpret_cast<float*>(out)[unit_position(i, to.type)] = static_cast<float>(x * inverse);
    }
    if (threadIdx.x == 0) to.scales[blockIdx.x] = norm > 0 ? 1.0f : 0.0f;
}

__device__ void write_pieces(const uint8_t* row, DataType type, int64_t columns, double norm,
                             const Prepared& to, uint8_t* out) {
    const int exponent = norm > 0 ? kExponent - ilogb(norm) : 0;
    for (int64_t i = threadIdx.x; i < to.columns; i += kThreads) {
        const double x = i < columns ? load_element(row, type, i) : 0.0f;
        float rest = static_cast<float>(scalbn(x, exponent));
        for (int p = 0; p < to.planes; ++p) {
            const uint16_t piece = to_piece(rest, to.type);
            rest -= from_piece(piece, to.type);
            reinterpret_cast<uint16_t*>(out + p * to.plane_stride)[i] = piece;
        }
    }
    if (threadIdx.x == 0) {
        to.scales[blockIdx.x] = norm > 0 ? static_cast<float>(1 / scalbn(norm, exponent)) : 0.0f;
    }
}

__device__ void write_codes(const uint8_t* row, DataType type, int64_t columns, double most,
                            const Prepared& to, uint8_t* out, const BlockSum& block_sum) {
    const double scale = most > 0 ? kLargestCode / most : 0;
    double squares = 0;
    for (int64_t i = threadIdx.x; i < to.columns; i += kThreads) {
        const double x = i < columns ? load_element(row, type, i) : 0.0f;
        const int code = static_cast<int>(rint(x * scale));
        const int low = ((code + 128) & 255) - 128;
        out[i] = static_cast<uint8_t>((code - low) / 256);
        out[to.plane_stride + i] = static_cast<uint8_t>(low);
        squares += static_cast<double>(code) * code;
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        to.scales[blockIdx.x] = squares > 0 ? static_cast<float>(1 / sqrt(squares)) : 0.0f;
    }
}

/// One block for each query.
__global__ void __launch_bounds__(kThreads)
    prepare(DeviceRows queries, int64_t first, Prepared to, Start start) {
    CLARA_SHARED(shared);
    const BlockSum block_sum{reinterpret_cast<double*>(shared)};
    const int64_t query = blockIdx.x;
    const uint8_t* row = queries.row(first + query);
    if (threadIdx.x == 0) start.thresholds[query] = 0;
    for (int i = threadIdx.x; start.shared_best != nullptr && i < start.k; i += kThreads) {
        start.shared_best[query * start.k + i] = 0;
    }
    double squares = 0, most = 0;
    for (int64_t i = threadIdx.x; i < queries.columns; i += kThreads) {
        const double x = load_element(row, queries.type, i);
        squares += x * x;
        most = fmax(most, fabs(x));
    }
    squares = block_sum(squares);
    most = block_sum.largest(most);
    uint8_t* out = to.data + query * to.query_stride;
    if (!(squares < 1e300)) {  // NaN or infinity; finite float32 stay far below
        for (int p = 0; p < to.planes; ++p) {
            uint8_t* plane = out + p * to.plane_stride;
            for (int64_t i = 16 * threadIdx.x; i < to.query_stride; i += 16 * kThreads) {
                *reinterpret_cast<uint4*>(plane + i) = make_uint4(0, 0, 0, 0);
            }
        }
        if (threadIdx.x == 0) to.scales[query] = __uint_as_float(0x7fc00000u);
        return;
    }
    switch (to.form) {
        case Form::unit:
            write_units(row, queries.type, queries.columns, sqrt(squares), to, out);
            break;
        case Form::pieces:
            write_pieces(row, queries.type, queries.columns, sqrt(squares), to, out);
            break;
        case Form::codes:
            write_codes(row, queries.type, queries.columns, most, to, out, block_sum);
            break;
    }
}

}  // namespace

void prepare_queries(const DeviceRows& queries, int64_t first, int64_t count,
                     const Prepared& prepared, const Start& start, cudaStream_t stream) {
    launch(prepare, dim3(static_cast<unsigned>(count)), kThreads, kThreads / 32 * sizeof(double),
           stream, queries, first, prepared, start);
}

}  // namespace clara
