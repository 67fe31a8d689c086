#pragma once

// Runs CUDA kernels that were compiled as C++ on one CPU thread: a block at a time, each of its
// threads a fiber that goes on until it waits for others. Includes what of CUDA the kernels use.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define CLARA_SHARED(name) unsigned char* const name = ::emulator::shared_memory()
#define CLARA_UNROLL
#define CLARA_NO_UNROLL

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

enum class Order { ascending, descending, random };

/// Applies to launches from now on. Threads run in this order, and so do blocks; copies by cp.async
/// are made as late as they may be, at once, or either.
struct Settings {
    Order order = Order::ascending;
    unsigned seed = 0;
    int multiprocessors = 3;
    int capability = 90;
};
Settings& settings();

/// Runs all blocks of a launch. Throws std::runtime_error if threads wait for ones that never come.
void run(dim3 grid, unsigned threads, size_t shared, const std::function<void()>& kernel);

unsigned char* shared_memory();
dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();

/// Ends the launch with an error.
[[noreturn]] void fail(const std::string& message);

/// The whole block, or fail; the threads' values combined by "or".
int block_barrier(const char* kind, int value);

/// The whole warp meets; each lane brings `value`. Returns all 32, valid until the lane's next
/// call. `kind` must be the same for all. The last to arrive calls `last`, unless it is null.
struct Slot {
    uint64_t words[8];
};
struct Meeting {
    Slot slots[32];
    float a[16][32], b[8][32];  // what mma decodes
};
Meeting& warp_meeting(const char* kind, const Slot& value, void (*last)(Meeting&) = nullptr);

struct Copy {
    void* to;
    const void* from;
    int bytes;
};
void copy_async(const Copy& copy);
void commit_copies();
void wait_for_copies(int pending);

template <class T>
T from_lane(const char* kind, T value, int lane) {
    Slot slot{};
    std::memcpy(&slot, &value, sizeof(T));
    Meeting& meeting = warp_meeting(kind, slot);
    std::memcpy(&value, &meeting.slots[lane], sizeof(T));
    return value;
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size())
#define gridDim (::emulator::grid_size())

inline void require_all_lanes(unsigned mask) {
    if (mask != 0xffffffffu) emulator::fail("only whole warps are emulated");
}
inline void __syncthreads() { emulator::block_barrier("__syncthreads", 0); }
inline int __syncthreads_or(int value) {
    return emulator::block_barrier("__syncthreads_or", value != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    require_all_lanes(mask);
    emulator::warp_meeting("__syncwarp", {});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    require_all_lanes(mask);
    return emulator::from_lane("__shfl_sync", value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    require_all_lanes(mask);
    const int lane = static_cast<int>(threadIdx.x % 32) ^ lanes;
    return emulator::from_lane("__shfl_xor_sync", value, lane);
}
inline unsigned __ballot_sync(unsigned mask, int value) {
    require_all_lanes(mask);
    emulator::Meeting& meeting = emulator::warp_meeting("__ballot_sync", {{value != 0}});
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(meeting.slots[i].words[0]) << i;
    return bits;
}
inline int __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value) != 0; }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) {
        c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
    }
    return c;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}
// No two fibers run at a time.
template <class T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address += value;
    return before;
}
template <class T>
T atomicMax(T* address, T value) {
    const T before = *address;
    if (value > before) *address = value;
    return before;
}

using std::fabs;
using std::fmax;
using std::fmaxf;
using std::fminf;
using std::ilogb;
using std::rint;
using std::scalbn;
using std::sqrt;

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
    int binaryVersion, ptxVersion;
};

inline const char* cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? 0 : 101; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return 0; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
    attributes->binaryVersion = attributes->ptxVersion = emulator::settings().capability;
    return 0;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
    *blocks = 1;
    return 0;
}
