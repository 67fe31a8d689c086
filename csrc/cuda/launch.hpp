#pragma once

#include <cstddef>

#include "cuda/current_device.hpp"

namespace clara {

constexpr size_t kSharedWithoutAsking = 48 << 10;

/// Lets `kernel` use as much dynamic shared memory as the device gives to one block. Never less:
/// other threads of the process may be launching it with more than is needed here.
template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t needed) {
    if (needed <= kSharedWithoutAsking) return;
    const auto* function = reinterpret_cast<const void*>(kernel);
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, function));
    const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
                     static_cast<int>(attributes.sharedSizeBytes);
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
}

/// Runs `kernel` on `stream`. All launches go through here.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared,
            cudaStream_t stream, Arguments... arguments) {
    allow_shared(kernel, shared);
#ifdef CLARA_CUDA_EMULATED
    static_cast<void>(stream);
    emulator::run(grid, threads, shared, [=] { kernel(arguments...); });
#else
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, arguments...));
#endif
}

/// Blocks of `kernel` that one multiprocessor holds at a time, at least 1.
template <class... Parameters>
int blocks_per_multiprocessor(void (*kernel)(Parameters...), int threads, size_t shared) {
    int blocks = 0;
    allow_shared(kernel, shared);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared));
    return blocks > 0 ? blocks : 1;
}

}  // namespace clara
