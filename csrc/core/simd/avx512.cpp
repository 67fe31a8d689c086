// AVX-512 F, BW, DQ, VL: int8 through products of 16-bit values.

#include "core/simd/vector_avx512.hpp"

namespace clara {
namespace {

struct Products16 {
    using Type = __m512i;
    static constexpr int kColumns = 32;
    static constexpr int kTileQueries = 6;

    static Type zero() { return _mm512_setzero_si512(); }
    static Type widen(const char* row) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
    }
    static Type load(const char* query) { return _mm512_loadu_si512(query); }
    static Type add(Type sum, Type query, Type row) {
        return _mm512_add_epi32(sum, _mm512_madd_epi16(query, row));
    }
    static Vector::Type to_float(Type sum) { return _mm512_cvtepi32_ps(sum); }
};

}  // namespace
}  // namespace clara

#include "core/simd/define_kernels.hpp"
#include "core/simd/dot8.hpp"

CLARA_DEFINE_KERNELS(kAvx512, "avx512", kAvx512Rows)
