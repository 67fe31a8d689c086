// The table of what an instruction set offers, which each file of one ends with, by
// CLARA_DEFINE_KERNELS: `Vector` and `Dot8` (products with int8 rows) are defined beforehand.

#include "core/simd/tile.hpp"

namespace clara {
namespace {

template <DataType type, bool kWrites>
constexpr TileKernel kFloatTile = tile_kernel<FloatDot<type, kWrites>, Vector::kTileQueries>;

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

#define CLARA_DEFINE_KERNELS(variable, name, row_kernels)                              \
    namespace clara {                                                                  \
    extern const RowKernels row_kernels;                                               \
    extern const Kernels variable;                                                     \
    const Kernels variable = {name,                                                    \
                              Vector::kTileQueries,                                    \
                              Dot8::kTileQueries,                                      \
                              kFloatTile<DataType::float32, false>,                    \
                              kFloatTile<DataType::float32, true>,                     \
                              kFloatTile<DataType::float16, true>,                     \
                              kFloatTile<DataType::bfloat16, true>,                    \
                              tile_kernel<Dot8, Dot8::kTileQueries>,                   \
                              {squares<DataType::float32>, squares<DataType::float16>, \
                               squares<DataType::bfloat16>, squares_int8},             \
                              Dot8::query_bytes,                                       \
                              Dot8::pack,                                              \
                              filter,                                                  \
                              &(row_kernels)};                                         \
    }
