// The one micro-kernel, written over vector types. Each instruction set has a file that defines
// `Vector` (float32 lanes) and `Dot8` (products with int8 rows), includes this, and ends with
// CLARA_DEFINE_KERNELS. All is in an unnamed namespace and nothing of the standard library is
// instantiated: of a function that other files share, the linker might keep the copy that was
// compiled for instructions which the processor lacks.

#include "core/simd/kernels.hpp"

namespace clara {
namespace {

/// Rows read as float32 vectors; `kWidens` says whether they are also written as such.
template <DataType type, bool kWidens>
struct FloatDot {
    using Sum = Vector::Type;
    using Row = Vector::Type;
    static constexpr int kColumns = Vector::kLanes;
    static constexpr int kItemSize = type == DataType::float32 ? 4 : 2;
    static constexpr bool kWide = kWidens;

    static Row load(const char* row) {
        if constexpr (type == DataType::float32) {
            return Vector::load(reinterpret_cast<const float*>(row));
        } else if constexpr (type == DataType::float16) {
            return Vector::load_float16(row);
        } else {
            return Vector::load_bfloat16(row);
        }
    }
    static void widen(Row row, float* out) { Vector::store(out, row); }
    static Sum begin(const char*) { return Vector::zero(); }
    static Sum add(Sum sum, const char* query, int64_t, int64_t column, Row row) {
        return Vector::fma(Vector::load(reinterpret_cast<const float*>(query) + column), row, sum);
    }
    static Vector::Type finish(Sum sum) { return sum; }
};

/// The order of additions depends on `columns` alone, so that equal rows get equal sums wherever
/// they are and whichever queries are beside.
template <class Dot, int kQueries>
void multiply(const Tile& tile) {
    using Row = typename Dot::Row;
    typename Dot::Sum sums[kQueries][kTileRows];  // all in registers
    for (int i = 0; i < kQueries; ++i) {
        for (int j = 0; j < kTileRows; ++j) {
            sums[i][j] = Dot::begin(tile.queries + i * tile.query_stride);
        }
    }
    const auto add = [&](int64_t column, const Row(&row)[kTileRows]) {
        for (int i = 0; i < kQueries; ++i) {
            const char* query = tile.queries + i * tile.query_stride;
            for (int j = 0; j < kTileRows; ++j) {
                sums[i][j] = Dot::add(sums[i][j], query, tile.columns, column, row[j]);
            }
            if constexpr (Dot::kWide) {
                if (i > 0) continue;
                for (int j = 0; j < kTileRows; ++j) Dot::widen(row[j], tile.wide[j] + column);
            }
        }
    };
    const int64_t step = Dot::kColumns * tile.ahead_item;
    const char *ahead0 = tile.ahead[0], *ahead1 = tile.ahead[1];
    int64_t column = 0;
    for (; column + Dot::kColumns <= tile.columns; column += Dot::kColumns) {
        __builtin_prefetch(ahead0, 0, 2);
        __builtin_prefetch(ahead1, 0, 2);
        ahead0 += step;
        ahead1 += step;
        Row row[kTileRows];
        for (int j = 0; j < kTileRows; ++j) {
            row[j] = Dot::load(tile.rows[j] + column * Dot::kItemSize);
        }
        add(column, row);
    }
    if (column < tile.columns) {  // a row may end where its memory does
        Row row[kTileRows];
        for (int j = 0; j < kTileRows; ++j) {
            alignas(64) char rest[Dot::kColumns * Dot::kItemSize] = {};
            __builtin_memcpy(rest, tile.rows[j] + column * Dot::kItemSize,
                             (tile.columns - column) * Dot::kItemSize);
            row[j] = Dot::load(rest);
        }
        add(column, row);
    }
    for (int i = 0; i < kQueries; ++i) {
        const typename Dot::Sum* s = sums[i];
        Vector::add_sums(Dot::finish(s[0]), Dot::finish(s[1]), Dot::finish(s[2]),
                         Dot::finish(s[3]), tile.sums + i * tile.sums_stride);
    }
}

template <class Dot, int kMost>
void tile_kernel(const Tile& tile) {
    if constexpr (kMost > 1) {
        if (tile.query_count < kMost) return tile_kernel<Dot, kMost - 1>(tile);
    }
    multiply<Dot, kMost>(tile);
}

template <DataType type, bool kWidens>
constexpr TileKernel kFloatTile = tile_kernel<FloatDot<type, kWidens>, Vector::kTileQueries>;

template <DataType type>
float squares(const char* row, int64_t count) {
    using Dot = FloatDot<type, false>;
    Vector::Type sum = Vector::zero();
    int64_t i = 0;
    for (; i + Dot::kColumns <= count; i += Dot::kColumns) {
        const Vector::Type values = Dot::load(row + i * Dot::kItemSize);
        sum = Vector::fma(values, values, sum);
    }
    if (i < count) {
        alignas(64) char rest[Dot::kColumns * Dot::kItemSize] = {};
        __builtin_memcpy(rest, row + i * Dot::kItemSize, (count - i) * Dot::kItemSize);
        const Vector::Type values = Dot::load(rest);
        sum = Vector::fma(values, values, sum);
    }
    float sums[kTileRows] = {};
    Vector::add_sums(sum, Vector::zero(), Vector::zero(), Vector::zero(), sums);
    return sums[0];
}

float squares_int8(const char* row, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t value = static_cast<signed char>(row[i]);
        sum += value * value;
    }
    return static_cast<float>(sum);
}

int filter(const float* sums, float scale, const float* inverse_norms, int count, float threshold,
           float* scores, uint8_t* found) {
    int passed = 0;
    for (int j = 0; j < count; j += Vector::kLanes) {
        unsigned bits = Vector::score(sums + j, scale, inverse_norms + j, threshold, scores + j);
        for (; bits != 0; bits &= bits - 1) {
            found[passed++] = static_cast<uint8_t>(j + __builtin_ctz(bits));
        }
    }
    return passed;
}

}  // namespace
}  // namespace clara

#define CLARA_DEFINE_KERNELS(variable, name)                                                      \
    namespace clara {                                                                             \
    extern const Kernels variable;                                                                \
    const Kernels variable = {name,                                                               \
                              Vector::kTileQueries,                                               \
                              Dot8::kTileQueries,                                                 \
                              kFloatTile<DataType::float32, false>,                               \
                              kFloatTile<DataType::float32, true>,                                \
                              kFloatTile<DataType::float16, true>,                                \
                              kFloatTile<DataType::bfloat16, true>,                               \
                              tile_kernel<Dot8, Dot8::kTileQueries>,                              \
                              {squares<DataType::float32>, squares<DataType::float16>,            \
                               squares<DataType::bfloat16>, squares_int8},                        \
                              Dot8::query_bytes,                                                  \
                              Dot8::pack,                                                         \
                              filter};                                                            \
    }
