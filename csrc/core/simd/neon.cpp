// What every 64-bit ARM processor has: 4 float32 lanes of NEON.

#include <arm_neon.h>

#include <cstdint>

namespace clara {
namespace {

struct Vector {
    using Type = float32x4_t;
    static constexpr int kLanes = 4;
    static constexpr int kTileQueries = 6;  // 6 · 4 sums, 4 rows and a query: 29 of 32 registers

    static Type zero() { return vdupq_n_f32(0); }
    static Type load(const float* p) { return vld1q_f32(p); }
    static Type load_float16(const char* p) {
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p))));
    }
    static Type load_bfloat16(const char* p) {
        const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p)));
        return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bits), 16));
    }
    static void store(float* p, Type x) { vst1q_f32(p, x); }
    static Type fma(Type a, Type b, Type c) { return vfmaq_f32(c, a, b); }
    static void add_sums(Type a, Type b, Type c, Type d, float* out) {
        const float32x4_t sums = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
        vst1q_f32(out, vaddq_f32(vld1q_f32(out), sums));
    }
    static unsigned score(const float* sums, float scale, const float* inverse_norms,
                          float threshold, float* scores) {
        const Type product =
            vmulq_f32(vmulq_f32(load(sums), vdupq_n_f32(scale)), load(inverse_norms));
        store(scores, product);
        const uint32x4_t bit = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(vcgeq_f32(product, vdupq_n_f32(threshold)), bit));
    }
};

struct Products16 {
    using Type = int32x4_t;
    static constexpr int kColumns = 4;
    static constexpr int kTileQueries = 6;

    static Type zero() { return vdupq_n_s32(0); }
    static Type widen(const char* row) {
        int32_t bits;
        __builtin_memcpy(&bits, row, sizeof(bits));
        return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bits)))));
    }
    static Type load(const char* query) {
        return vmovl_s16(vreinterpret_s16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(query))));
    }
    static Type add(Type sum, Type query, Type row) { return vmlaq_s32(sum, query, row); }
    static Vector::Type to_float(Type sum) { return vcvtq_f32_s32(sum); }
};

}  // namespace
}  // namespace clara

#include "core/simd/define_kernels.hpp"
#include "core/simd/dot8.hpp"

CLARA_DEFINE_KERNELS(kNeon, "neon", kPlainRows)
