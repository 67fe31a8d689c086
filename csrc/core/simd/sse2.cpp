// What every x86-64 processor has: 4 float32 lanes of SSE2, products rounded before they are added.

#include <emmintrin.h>

#include <cstdint>

namespace clara {
namespace {

struct Vector {
    using Type = __m128;
    static constexpr int kLanes = 4;
    static constexpr int kTileQueries = 2;  // 2 · 4 sums, 4 rows, a query and a product

    static Type zero() { return _mm_setzero_ps(); }
    static Type load(const float* p) { return _mm_loadu_ps(p); }
    static Type load_float16(const char* p) {
        const __m128i bits = _mm_unpacklo_epi16(
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
        const __m128i sign = _mm_slli_epi32(_mm_and_si128(bits, _mm_set1_epi32(0x8000)), 16);
        const __m128i magnitude = _mm_slli_epi32(_mm_and_si128(bits, _mm_set1_epi32(0x7fff)), 13);
        // Shifting the exponent by a product is right for subnormals too; infinities and NaNs are
        // left with an exponent that is not all ones.
        const __m128 value = _mm_mul_ps(_mm_castsi128_ps(magnitude), _mm_set1_ps(0x1p112f));
        const __m128i not_finite = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32((0x7c00 << 13) - 1));
        const __m128i exponent = _mm_and_si128(not_finite, _mm_set1_epi32(0x7f800000));
        const __m128i rest = _mm_or_si128(sign, exponent);
        return _mm_or_ps(value, _mm_castsi128_ps(rest));
    }
    static Type load_bfloat16(const char* p) {
        const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), bits));
    }
    static void store(float* p, Type x) { _mm_storeu_ps(p, x); }
    static Type fma(Type a, Type b, Type c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
    static void add_sums(Type a, Type b, Type c, Type d, float* out) {
        const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        const __m128 sums = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
        _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
    }
    static unsigned score(const float* sums, float scale, const float* inverse_norms,
                          float threshold, float* scores) {
        const Type product =
            _mm_mul_ps(_mm_mul_ps(load(sums), _mm_set1_ps(scale)), load(inverse_norms));
        store(scores, product);
        return _mm_movemask_ps(_mm_cmpge_ps(product, _mm_set1_ps(threshold)));
    }
};

struct Products16 {
    using Type = __m128i;
    static constexpr int kColumns = 8;
    static constexpr int kTileQueries = 2;

    static Type zero() { return _mm_setzero_si128(); }
    static Type widen(const char* row) {
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row));
        return _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), codes), 8);
    }
    static Type load(const char* query) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(query));
    }
    static Type add(Type sum, Type query, Type row) {
        return _mm_add_epi32(sum, _mm_madd_epi16(query, row));
    }
    static Vector::Type to_float(Type sum) { return _mm_cvtepi32_ps(sum); }
};

}  // namespace
}  // namespace clara

#include "core/simd/define_kernels.hpp"
#include "core/simd/dot8.hpp"

CLARA_DEFINE_KERNELS(kSse2, "sse2", kPlainRows)
