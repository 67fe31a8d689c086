#pragma once

#include <cstdint>

namespace clara {

enum class DataType { float32, float16, bfloat16 };

/// A matrix in row-major order. Elements of one row are adjacent; rows are `stride` elements apart.
struct Rows {
    const void* data;
    DataType type;
    int64_t count;
    int64_t columns;
    int64_t stride;
};

/// Writes row `index` to `out` as `rows.columns` float32 values. Every conversion is exact.
void load_row(const Rows& rows, int64_t index, float* out);

}  // namespace clara
