// AVX-512 with VNNI: int8 through products of bytes, four summed at a time. A query value of 16 bits
// is 256 · high + low with high and low of 8, and each has its own sums.

#include "core/simd/vector_avx512.hpp"

namespace clara {
namespace {

struct Dot8 {
    struct Sum {
        __m512i high, low;
    };
    using Row = __m512i;
    static constexpr int kColumns = 64;
    static constexpr int kTileQueries = 3;  // 3 · 4 · 2 sums, 4 rows, 2 halves of a query
    static constexpr int kItemSize = 1;
    static constexpr bool kWide = false;

    /// The instruction takes bytes without a sign on one side: rows are read as code + 128, and what
    /// that adds to the sums of a query is in the first vector of the packed query, negated.
    static Row load(const char* row) {
        return _mm512_xor_si512(_mm512_loadu_si512(row), _mm512_set1_epi8(-128));
    }
    static Sum begin(const char* query) {
        return {_mm512_setzero_si512(), _mm512_loadu_si512(query)};
    }
    static Sum add(Sum sum, const char* query, int64_t columns, int64_t column, Row row) {
        const char* high = query + 64 + column;
        const char* low = high + padded(columns);
        return {_mm512_dpbusd_epi32(sum.high, row, _mm512_loadu_si512(high)),
                _mm512_dpbusd_epi32(sum.low, row, _mm512_loadu_si512(low))};
    }
    static __m512 finish(Sum sum) {
        return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum.high, 8), sum.low));
    }

    /// A packed query: the correction, all high bytes, all low bytes.
    static int64_t query_bytes(int64_t columns) { return 64 + 2 * padded(columns); }
    static void pack(const int16_t* values, int64_t columns, char* out) {
        int32_t correction[16] = {};
        for (int64_t i = 0; i < columns; ++i) {
            const int low = static_cast<signed char>(values[i] & 0xff);
            out[64 + i] = static_cast<char>((values[i] - low) / 256);
            out[64 + padded(columns) + i] = static_cast<char>(low);
            correction[i / 4 % 16] -= 128 * values[i];
        }
        __builtin_memcpy(out, correction, sizeof(correction));
    }

private:
    static int64_t padded(int64_t columns) { return (columns + 63) / 64 * 64; }
};

}  // namespace
}  // namespace clara

#include "core/simd/tile.hpp"

CLARA_DEFINE_KERNELS(kAvx512Vnni, "avx512vnni")
