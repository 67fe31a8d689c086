#include <algorithm>

#include "cuda/arguments.hpp"
#include "cuda/launch.hpp"
#include "cuda/top_list.cuh"

namespace clara {
namespace {

constexpr int kThreads = 256;
constexpr double kSafeLeast = 0x1p-100, kSafeMost = 0x1p100;

template <class Row>
__device__ double squares_of(const uint4& v) {
    if constexpr (Row::kVector == 16) {
        int sum = __dp4a(static_cast<int>(v.x), static_cast<int>(v.x), 0);
        sum = __dp4a(static_cast<int>(v.y), static_cast<int>(v.y), sum);
        sum = __dp4a(static_cast<int>(v.z), static_cast<int>(v.z), sum);
        return __dp4a(static_cast<int>(v.w), static_cast<int>(v.w), sum);
    } else {
        float sum = 0;
        CLARA_UNROLL
        for (int i = 0; i < Row::kVector; ++i) {
            const float x = Row::element(v, i);
            sum = __fmaf_rn(x, x, sum);
        }
        return sum;
    }
}

/// One warp for each row.
template <class Row>
__global__ void __launch_bounds__(kThreads) inverse_norms(DeviceRows rows, float* out) {
    const int lane = threadIdx.x % 32;
    const int bytes = rows.row_bytes<Row>();
    const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
    int64_t index = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
    for (; index < rows.count; index += warps) {
        const uint8_t* const row = rows.row(index);
        double sum = 0;
        CLARA_UNROLL
        for (int offset = lane * 16; offset < bytes; offset += 512) {
            const uint8_t* const from[1] = {row};
            uint4 v[1];
            load_vectors<Row>(from, offset, bytes, rows.aligned, v);
            sum += squares_of<Row>(v[0]);
        }
        sum = sum_of_lanes(sum);
        if (!(sum > kSafeLeast && sum < kSafeMost)) {
            // A square may have overflowed, or one that counts may have vanished; or NaN.
            sum = 0;
            CLARA_NO_UNROLL
            for (int64_t i = lane; i < rows.columns; i += 32) {
                const double x = load_element(row, rows.type, i);
                sum += x * x;
            }
            sum = sum_of_lanes(sum);
        }
        if (lane != 0) continue;
        const double norm = sqrt(sum);
        float inverse = static_cast<float>(1 / norm);
        if (norm < 0x1p-80 || norm > 0x1p80) inverse = kExtremeNorm;
        if (norm == 0) inverse = 0;
        if (!(sum < 1e300)) inverse = __uint_as_float(0x7fc00000u);
        out[index] = inverse;
    }
}

}  // namespace

void cuda_inverse_norms(const CudaRows& rows, float* inverse_norms_out, int device, void* stream) {
    require_rows(rows, "rows");
    require(rows.columns <= kMostColumns,
            "rows must have at most 2^28 columns, got " + std::to_string(rows.columns));
    if (rows.count == 0) return;
    require(inverse_norms_out != nullptr, "inverse_norms must not be null");
    const CurrentDevice current(device);
    const int64_t most = 8 * device_attribute(cudaDevAttrMultiProcessorCount);
    const int64_t blocks = std::min(div_up(rows.count, kThreads / 32), most);
    const auto run = [&](auto kernel) {
        launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0,
               static_cast<cudaStream_t>(stream), DeviceRows(rows), inverse_norms_out);
    };
    switch (rows.type) {
        case DataType::float32:
            return run(inverse_norms<Float32Row>);
        case DataType::float16:
            return run(inverse_norms<Float16Row>);
        case DataType::bfloat16:
            return run(inverse_norms<Bfloat16Row>);
        case DataType::int8:
            return run(inverse_norms<Int8Row>);
    }
}

}  // namespace clara
