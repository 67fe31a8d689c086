// int8 rows by products of 16-bit values summed in pairs, for instruction sets that have no better:
// `Products16` is defined beforehand.

namespace clara {
namespace {

struct Dot8 {
    using Sum = Products16::Type;
    using Row = Products16::Type;
    static constexpr int kColumns = Products16::kColumns;
    static constexpr int kTileQueries = Products16::kTileQueries;
    static constexpr int kItemSize = 1;
    static constexpr int kPieces = 1;
    static constexpr int kQueryStep = kColumns * 2;
    static constexpr bool kWritten = false;

    static Row load(const char* row) { return Products16::widen(row); }
    static Sum begin(const char*, int) { return Products16::zero(); }
    static Row load_query(const char* query, int) { return Products16::load(query); }
    static Sum add(Sum sum, Row query, Row row) { return Products16::add(sum, query, row); }
    static Vector::Type finish(const Sum (&sums)[1]) { return Products16::to_float(sums[0]); }

    /// A packed query is its values, and zeros up to a whole vector.
    static int64_t query_bytes(int64_t columns) {
        return (columns + kColumns - 1) / kColumns * kColumns * 2;
    }
    static void pack(const int16_t* values, int64_t columns, char* out) {
        __builtin_memcpy(out, values, columns * 2);
    }
};

}  // namespace
}  // namespace clara
