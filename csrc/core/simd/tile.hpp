// The one micro-kernel, written over vector types. Each instruction set has a file that defines
// `Vector` (float32 lanes) and includes this. All is in an unnamed namespace and nothing of the
// standard library is instantiated: of a function that other files share, the linker might keep the
// copy that was compiled for instructions which the processor lacks.

#include "core/simd/kernels.hpp"

// Sums live in registers only if every index is a constant.
#define CLARA_UNROLL _Pragma("GCC unroll 8")

namespace clara {
namespace {

/// Rows read as float32 vectors; `kWrites` says whether they are also written as such.
template <DataType type, bool kWrites>
struct FloatDot {
    using Sum = Vector::Type;
    using Row = Vector::Type;
    static constexpr int kColumns = Vector::kLanes;
    static constexpr int kItemSize = type == DataType::float32 ? 4 : 2;
    static constexpr int kQueryStep = kColumns * 4;  // bytes of a packed query for kColumns
    static constexpr int kPieces = 1;                // of a query, each with sums of its own
    static constexpr int kTileQueries = Vector::kTileQueries;
    static constexpr bool kWritten = kWrites;

    static Row load(const char* row) {
        if constexpr (type == DataType::float32) {
            return Vector::load(reinterpret_cast<const float*>(row));
        } else if constexpr (type == DataType::float16) {
            return Vector::load_float16(row);
        } else {
            return Vector::load_bfloat16(row);
        }
    }
    static void write(Row row, char* out, int64_t column) {
        Vector::store(reinterpret_cast<float*>(out) + column, row);
    }
    static Sum begin(const char*, int) { return Vector::zero(); }
    static Row load_query(const char* query, int) {
        return Vector::load(reinterpret_cast<const float*>(query));
    }
    static Sum add(Sum sum, Row query, Row row) { return Vector::fma(query, row, sum); }
    static Vector::Type finish(const Sum (&sums)[1]) { return sums[0]; }
};

/// The order of additions depends on `columns` alone, so that equal rows get equal sums wherever
/// they are and whichever queries are beside.
template <class Dot, int kQueries>
void multiply(const Tile& tile) {
    using Row = typename Dot::Row;
    typename Dot::Sum sums[kQueries][kTileRows][Dot::kPieces];  // all in registers
    CLARA_UNROLL for (int i = 0; i < kQueries; ++i) {
        CLARA_UNROLL for (int j = 0; j < kTileRows; ++j) {
            CLARA_UNROLL for (int p = 0; p < Dot::kPieces; ++p) {
                sums[i][j][p] = Dot::begin(tile.queries + i * tile.query_stride, p);
            }
        }
    }
    constexpr int kAhead = 3 * kQueries <= 2 * Dot::kTileQueries ? 4 : 2;
    const int64_t whole = tile.columns / Dot::kColumns * Dot::kColumns;
    const char *row0 = tile.rows[0], *row1 = tile.rows[1], *row2 = tile.rows[2];
    const char *row3 = tile.rows[3], *queries = tile.queries;
    alignas(64) char rest[kTileRows][Dot::kColumns * Dot::kItemSize];
    int64_t ahead = 0;
    for (int64_t column = 0; column < tile.columns; column += Dot::kColumns) {
        if (column == whole) {  // a row may end where its memory does
            const int64_t bytes = (tile.columns - whole) * Dot::kItemSize;
            __builtin_memset(rest, 0, sizeof(rest));
            __builtin_memcpy(rest[0], row0, bytes);
            __builtin_memcpy(rest[1], row1, bytes);
            __builtin_memcpy(rest[2], row2, bytes);
            __builtin_memcpy(rest[3], row3, bytes);
            row0 = rest[0];
            row1 = rest[1];
            row2 = rest[2];
            row3 = rest[3];
        }
        CLARA_UNROLL for (int j = 0; j < kAhead; ++j) {
            __builtin_prefetch(tile.ahead[j] + ahead, 0, 2);
        }
        ahead += kCacheLine;
        const Row row[kTileRows] = {Dot::load(row0), Dot::load(row1), Dot::load(row2),
                                    Dot::load(row3)};
        row0 += Dot::kColumns * Dot::kItemSize;
        row1 += Dot::kColumns * Dot::kItemSize;
        row2 += Dot::kColumns * Dot::kItemSize;
        row3 += Dot::kColumns * Dot::kItemSize;
        if constexpr (Dot::kWritten) {
            CLARA_UNROLL for (int j = 0; j < kTileRows; ++j)
                Dot::write(row[j], tile.copies[j], column);
        }
        CLARA_UNROLL for (int i = 0; i < kQueries; ++i) {
            CLARA_UNROLL for (int p = 0; p < Dot::kPieces; ++p) {
                const auto values = Dot::load_query(queries + i * tile.query_stride, p);
                CLARA_UNROLL for (int j = 0; j < kTileRows; ++j) {
                    sums[i][j][p] = Dot::add(sums[i][j][p], values, row[j]);
                }
            }
        }
        queries += Dot::kQueryStep;
    }
    CLARA_UNROLL for (int i = 0; i < kQueries; ++i) {
        Vector::add_sums(Dot::finish(sums[i][0]), Dot::finish(sums[i][1]), Dot::finish(sums[i][2]),
                         Dot::finish(sums[i][3]), tile.sums + i * tile.sums_stride);
    }
}

template <class Dot, int kMost>
void tile_kernel(const Tile& tile) {
    if constexpr (kMost > 1) {
        if (tile.query_count < kMost) return tile_kernel<Dot, kMost - 1>(tile);
    }
    multiply<Dot, kMost>(tile);
}

}  // namespace
}  // namespace clara
