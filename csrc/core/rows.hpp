#pragma once

#include <cstdint>

namespace clara {

enum class DataType { float32, float16, bfloat16, int8 };

constexpr int64_t item_size(DataType type) {
    return type == DataType::float32 ? 4 : type == DataType::int8 ? 1 : 2;
}

/// A matrix in row-major order. Elements of one row are adjacent; rows are `stride` elements apart.
struct Rows {
    const void* data;
    DataType type;
    int64_t count;
    int64_t columns;
    int64_t stride;

    const char* row(int64_t index) const {
        return static_cast<const char*>(data) + index * stride * item_size(type);
    }
};

/// Writes elements [begin, begin + count) of row `index` as float32. Every conversion is exact.
void load_row(const Rows& rows, int64_t index, int64_t begin, int64_t count, float* out);

}  // namespace clara
