// AVX2 with FMA and F16C: 8 float32 lanes.

#include <immintrin.h>

#include <cstdint>

namespace clara {
namespace {

struct Vector {
    using Type = __m256;
    static constexpr int kLanes = 8;
    static constexpr int kTileQueries = 2;  // 2 · 4 sums, 4 rows, a query: 13 of 16 registers

    static Type zero() { return _mm256_setzero_ps(); }
    static Type load(const float* p) { return _mm256_loadu_ps(p); }
    static Type load_float16(const char* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Type load_bfloat16(const char* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static void store(float* p, Type x) { _mm256_storeu_ps(p, x); }
    static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
    static void add_sums(Type a, Type b, Type c, Type d, float* out) {
        const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        const __m128 sums =
            _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
    }
    static unsigned score(const float* sums, float scale, const float* inverse_norms,
                          float threshold, float* scores) {
        const Type product =
            _mm256_mul_ps(_mm256_mul_ps(load(sums), _mm256_set1_ps(scale)), load(inverse_norms));
        store(scores, product);
        return _mm256_movemask_ps(_mm256_cmp_ps(product, _mm256_set1_ps(threshold), _CMP_GE_OQ));
    }
};

struct Products16 {
    using Type = __m256i;
    static constexpr int kColumns = 16;
    static constexpr int kTileQueries = 2;  // 2 · 4 sums, 4 rows, a product

    static Type zero() { return _mm256_setzero_si256(); }
    static Type widen(const char* row) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
    }
    static Type load(const char* query) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query));
    }
    static Type add(Type sum, Type query, Type row) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(query, row));
    }
    static Vector::Type to_float(Type sum) { return _mm256_cvtepi32_ps(sum); }
};

}  // namespace
}  // namespace clara

#include "core/simd/define_kernels.hpp"
#include "core/simd/dot8.hpp"

CLARA_DEFINE_KERNELS(kAvx2, "avx2", kAvx2Rows)
