#include "core/rows.hpp"

#include <algorithm>
#include <cstring>

namespace clara {
namespace {

float from_bits(uint32_t bits) {
    float value;
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

void load_row(const Rows& rows, int64_t index, float* out) {
    const int64_t offset = index * rows.stride;
    if (rows.type == DataType::float32) {
        const float* row = static_cast<const float*>(rows.data) + offset;
        std::copy(row, row + rows.columns, out);
        return;
    }
    const uint16_t* row = static_cast<const uint16_t*>(rows.data) + offset;
    const auto convert = rows.type == DataType::float16 ? float16_to_float : bfloat16_to_float;
    std::transform(row, row + rows.columns, out, convert);
}

}  // namespace clara
