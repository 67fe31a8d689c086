#pragma once

// CUDA, or the emulator of tests/csrc/cuda_emulator, in which the same sources run on a CPU.
#ifdef CLARA_CUDA_EMULATED
#include "cuda_emulator.hpp"
#else
#include <cuda_runtime.h>

/// Names the dynamic shared memory of a kernel.
#define CLARA_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#define CLARA_UNROLL _Pragma("unroll")
#define CLARA_NO_UNROLL _Pragma("unroll 1")
#endif
