// 16 float32 lanes of AVX-512 with the extensions BW, DQ and VL.

#include <immintrin.h>

#include <cstdint>

namespace clara {
namespace {

struct Vector {
    using Type = __m512;
    static constexpr int kLanes = 16;
    static constexpr int kTileQueries = 6;  // 6 · 4 sums, 4 rows and a query: 29 of 32 registers

    static Type zero() { return _mm512_setzero_ps(); }
    static Type load(const float* p) { return _mm512_loadu_ps(p); }
    static Type load_float16(const char* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Type load_bfloat16(const char* p) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static void store(float* p, Type x) { _mm512_storeu_ps(p, x); }
    static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }

    /// out[0] += the sum of a's lanes, out[1] += that of b's, and so on.
    static void add_sums(Type a, Type b, Type c, Type d, float* out) {
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        const __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        const __m256 half =
            _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
        const __m128 sums =
            _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
    }

    /// scores = sums * scale * inverse_norms; bit j tells whether score j is at least `threshold`.
    static unsigned score(const float* sums, float scale, const float* inverse_norms,
                          float threshold, float* scores) {
        const Type product =
            _mm512_mul_ps(_mm512_mul_ps(load(sums), _mm512_set1_ps(scale)), load(inverse_norms));
        store(scores, product);
        return _mm512_cmp_ps_mask(product, _mm512_set1_ps(threshold), _CMP_GE_OQ);
    }
};

}  // namespace
}  // namespace clara
