#pragma once

// Every PTX instruction that CUDA C++ has no function for. Fragments are those of the PTX ISA's
// m16n8k16 (16-bit) and m16n8k32 (8-bit): counted in bytes, they are the same.

#include <cstdint>

#include "cuda/platform.cuh"

#ifndef CLARA_CUDA_EMULATED

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CLARA_TENSOR_CORES
#endif

namespace clara {

struct Bfloat16Mma {
    using Sum = float;
    static __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef CLARA_TENSOR_CORES
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
};

struct Float16Mma {
    using Sum = float;
    static __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef CLARA_TENSOR_CORES
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
};

struct Int8Mma {
    using Sum = int;
    static __device__ void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef CLARA_TENSOR_CORES
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
};

/// Four 8 x 16-byte matrices; lane 8 i + j passes the address of row j of matrix i.
__device__ inline void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

/// Copies `bytes` (0 … 16) to shared memory and zeros up to 16; both addresses have 16-byte
/// alignment. On sm_75 at once, else when cp_async_wait says so.
__device__ inline void cp_async_16(void* shared, const void* global, int bytes) {
#ifdef CLARA_TENSOR_CORES
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(global), "r"(bytes)
                 : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (bytes == 16) {
        value = *static_cast<const uint4*>(global);
        bytes = 0;
    }
    *static_cast<uint4*>(shared) = value;
    for (int i = 0; i < bytes; ++i) {
        static_cast<uint8_t*>(shared)[i] = static_cast<const uint8_t*>(global)[i];
    }
#endif
}

__device__ inline void cp_async_commit() {
#ifdef CLARA_TENSOR_CORES
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most `pending` of the calling thread's groups are under way.
template <int pending>
__device__ inline void cp_async_wait() {
#ifdef CLARA_TENSOR_CORES
    asm volatile("cp.async.wait_group %0;" : : "n"(pending) : "memory");
#endif
}

/// 16 aligned bytes that are read once and are not to displace others in the level-1 cache; zeros
/// unless they are `wanted`. Not a branch, so that several loads can be under way.
__device__ inline uint4 load_streaming(const void* global, bool wanted) {
    uint4 v;
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.s32 wanted, %5, 0;\n"
        "mov.u32 %0, 0;\n"
        "mov.u32 %1, 0;\n"
        "mov.u32 %2, 0;\n"
        "mov.u32 %3, 0;\n"
        "@wanted ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
        "}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(global), "r"(static_cast<int>(wanted)));
    return v;
}

__device__ inline float float16_to_float(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline uint16_t float_to_float16(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

}  // namespace clara

#else
#define CLARA_TENSOR_CORES
#include "mma_emulated.hpp"
#endif
