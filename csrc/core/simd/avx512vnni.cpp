// AVX-512 with VNNI: int8 through products of bytes, four summed at a time. A query value of 16
// bits is 256 · high + low with high and low of 8, and each has its own sums.

#include "core/simd/vector_avx512.hpp"

namespace clara {
namespace {

struct Dot8 {
    using Sum = __m512i;
    using Row = __m512i;
    static constexpr int kColumns = 64;
    static constexpr int kTileQueries = 2;  // 2 · 4 · 2 sums, 4 rows, a piece of a query
    static constexpr int kItemSize = 1;
    static constexpr int kPieces = 2;  // high and low bytes
    static constexpr int kQueryStep = 2 * kColumns;
    static constexpr bool kWritten = false;

    /// The instruction takes bytes without a sign on one side: rows are read as code + 128, and
    /// what that adds to the sums of a query is in the first vector of the packed query, negated.
    static Row load(const char* row) {
        return _mm512_xor_si512(_mm512_loadu_si512(row), _mm512_set1_epi8(-128));
    }
    static Sum begin(const char* query, int piece) {
        return piece == 0 ? _mm512_setzero_si512() : _mm512_loadu_si512(query);
    }
    static Row load_query(const char* query, int piece) {
        return _mm512_loadu_si512(query + kHeader + int64_t{piece} * kColumns);
    }
    static Sum add(Sum sum, Row query, Row row) { return _mm512_dpbusd_epi32(sum, row, query); }
    static __m512 finish(const Sum (&sums)[2]) {
        return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums[0], 8), sums[1]));
    }

    /// A packed query: the correction, then for every 64 values the high bytes and the low bytes.
    static int64_t query_bytes(int64_t columns) {
        return kHeader + (columns + kColumns - 1) / kColumns * kQueryStep;
    }
    static void pack(const int16_t* values, int64_t columns, char* out) {
        int32_t correction[16] = {};
        for (int64_t i = 0; i < columns; ++i) {
            char* vectors = out + kHeader + i / kColumns * kQueryStep + i % kColumns;
            const int low = static_cast<signed char>(values[i] & 0xff);
            vectors[0] = static_cast<char>((values[i] - low) / 256);
            vectors[kColumns] = static_cast<char>(low);
            correction[i / 4 % 16] -= 128 * values[i];
        }
        __builtin_memcpy(out, correction, sizeof(correction));
    }

private:
    static constexpr int kHeader = 64;  // bytes
};

}  // namespace
}  // namespace clara

#include "core/simd/define_kernels.hpp"

CLARA_DEFINE_KERNELS(kAvx512Vnni, "avx512vnni", kAvx512Rows)
