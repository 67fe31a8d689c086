#pragma once

#include <cstddef>

#include "cuda/current_device.hpp"

namespace clara {

constexpr size_t kSharedWithoutAsking = 48 << 10;

/// Runs `kernel` on `stream`. All launches go through here.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared,
            cudaStream_t stream, Arguments... arguments) {
    if (shared > kSharedWithoutAsking) {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)));
    }
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
    if (shared > kSharedWithoutAsking) {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)));
    }
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared));
    return blocks > 0 ? blocks : 1;
}

}  // namespace clara
