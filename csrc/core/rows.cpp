#include "core/rows.hpp"

#include <algorithm>
#include <cstring>

namespace clara {
namespace {

float from_bits(uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

float bfloat16_to_float(uint16_t bits) { return from_bits(uint32_t{bits} << 16); }

float float16_to_float(uint16_t bits) {
    constexpr uint32_t kExponent = 0x1fu << 23;  // all five exponent bits, where float32 has them
    constexpr uint32_t kRebias = (127u - 15u) << 23;

    const uint32_t sign = (bits & 0x8000u) << 16;
    uint32_t magnitude = (bits & 0x7fffu) << 13;
    const uint32_t exponent = magnitude & kExponent;
    magnitude += kRebias;
    if (exponent == kExponent) {
        magnitude += kRebias;  // infinity and NaN
    } else if (exponent == 0) {
        // Subnormal: read the mantissa with the smallest normal exponent, then subtract its
        // hidden 1.
        const float value = from_bits(magnitude + (1u << 23)) - from_bits(113u << 23);
        std::memcpy(&magnitude, &value, sizeof(magnitude));
    }
    return from_bits(sign | magnitude);
}

}  // namespace

void load_row(const Rows& rows, int64_t index, int64_t begin, int64_t count, float* out) {
    const char* row = rows.row(index) + begin * item_size(rows.type);
    switch (rows.type) {
        case DataType::float32:
            std::copy_n(reinterpret_cast<const float*>(row), count, out);
            return;
        case DataType::int8:
            for (int64_t i = 0; i < count; ++i) out[i] = static_cast<signed char>(row[i]);
            return;
        case DataType::float16:
        case DataType::bfloat16: {
            const auto* bits = reinterpret_cast<const uint16_t*>(row);
            const auto convert =
                rows.type == DataType::float16 ? float16_to_float : bfloat16_to_float;
            for (int64_t i = 0; i < count; ++i) out[i] = convert(bits[i]);
            return;
        }
    }
}

}  // namespace clara
