// Plain C++ for every other architecture.

#include <cstdint>
#include <cstring>

namespace clara {
namespace {

struct Vector {
    struct Type {
        float lane[4];
    };
    static constexpr int kLanes = 4;
    static constexpr int kTileQueries = 2;

    static Type zero() { return {}; }
    static Type load(const float* p) {
        Type x;
        std::memcpy(&x, p, sizeof(x));
        return x;
    }
    static Type load_float16(const char* p) { return widened(p, float16); }
    static Type load_bfloat16(const char* p) { return widened(p, bfloat16); }
    static void store(float* p, Type x) { std::memcpy(p, &x, sizeof(x)); }
    static Type fma(Type a, Type b, Type c) {
        for (int i = 0; i < kLanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
        return c;
    }
    static void add_sums(Type a, Type b, Type c, Type d, float* out) {
        const Type all[4] = {a, b, c, d};
        for (int j = 0; j < 4; ++j) {
            const float* x = all[j].lane;
            out[j] += (x[0] + x[2]) + (x[1] + x[3]);
        }
    }
    static unsigned score(const float* sums, float scale, const float* inverse_norms,
                          float threshold, float* scores) {
        unsigned bits = 0;
        for (int i = 0; i < kLanes; ++i) {
            scores[i] = sums[i] * scale * inverse_norms[i];
            bits |= unsigned{scores[i] >= threshold} << i;
        }
        return bits;
    }

private:
    static float from_bits(uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    }
    static float bfloat16(uint16_t bits) { return from_bits(uint32_t{bits} << 16); }
    static float float16(uint16_t bits) {
        const uint32_t sign = (bits & 0x8000u) << 16;
        const uint32_t magnitude = (bits & 0x7fffu) << 13;
        if (magnitude >= 0x7c00u << 13) return from_bits(sign | 0x7f800000u | magnitude);
        const float value = from_bits(magnitude) * 0x1p112f;
        return sign ? -value : value;
    }
    static Type widened(const char* p, float (*convert)(uint16_t)) {
        uint16_t bits[4];
        std::memcpy(bits, p, sizeof(bits));
        return {convert(bits[0]), convert(bits[1]), convert(bits[2]), convert(bits[3])};
    }
};

struct Products16 {
    struct Type {
        int32_t lane[4];
    };
    static constexpr int kColumns = 4;
    static constexpr int kTileQueries = 2;

    static Type zero() { return {}; }
    static Type widen(const char* row) {
        Type x;
        for (int i = 0; i < 4; ++i) x.lane[i] = static_cast<signed char>(row[i]);
        return x;
    }
    static Type load(const char* query) {
        int16_t values[4];
        std::memcpy(values, query, sizeof(values));
        return {values[0], values[1], values[2], values[3]};
    }
    static Type add(Type sum, Type query, Type row) {
        for (int i = 0; i < 4; ++i) sum.lane[i] += query.lane[i] * row.lane[i];
        return sum;
    }
    static Vector::Type to_float(Type sum) {
        const int32_t* x = sum.lane;
        return {static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]),
                static_cast<float>(x[3])};
    }
};

}  // namespace
}  // namespace clara

#include "core/simd/define_kernels.hpp"
#include "core/simd/dot8.hpp"

CLARA_DEFINE_KERNELS(kPortable, "portable", kPlainRows)
