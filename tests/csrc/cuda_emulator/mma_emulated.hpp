#pragma once

// What csrc/cuda/mma.cuh has as PTX, with the fragments that the PTX ISA manual draws.

#include "cuda_emulator.hpp"

namespace clara {

inline float float16_to_float(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value = exponent == 0    ? std::ldexp(static_cast<float>(mantissa), -24)
                  : exponent == 31 ? (mantissa != 0 ? NAN : INFINITY)
                                   : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    return (bits & 0x8000) != 0 ? -value : value;
}

/// Rounds to nearest even.
inline uint16_t float_to_float16(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(static_cast<double>(value));
    if (std::isnan(value)) return 0x7fff;
    if (magnitude >= 65520) return sign | 0x7c00;
    int exponent = magnitude > 0 ? std::max(std::ilogb(magnitude), -14) : -14;
    const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    // 1,024 units or more have the hidden bit, which adds to the exponent; so does 2,048.
    return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units));
}

namespace emulated {

inline float decode_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

/// The matrices of all lanes: byte 16 h + 4 t + i of row g + 8 u of A is byte i of register u + 2 h
/// of lane 4 g + t; byte 16 h + 4 t + i of column g of B is byte i of register h of that lane.
template <int kBytes, class Decode>
void gather(emulator::Meeting& meeting, const Decode& decode) {
    uint8_t a[16][32], b[8][32];
    for (int lane = 0; lane < 32; ++lane) {
        uint32_t words[6];
        std::memcpy(words, meeting.slots[lane].words, sizeof(words));
        const int g = lane / 4, t = lane % 4;
        for (int h = 0; h < 2; ++h) {
            for (int u = 0; u < 2; ++u)
                std::memcpy(&a[g + 8 * u][16 * h + 4 * t], &words[u + 2 * h], 4);
            std::memcpy(&b[g][16 * h + 4 * t], &words[4 + h], 4);
        }
    }
    for (int i = 0; i < 32 / kBytes; ++i) {
        for (int row = 0; row < 16; ++row) meeting.a[row][i] = decode(&a[row][i * kBytes]);
        for (int column = 0; column < 8; ++column)
            meeting.b[column][i] = decode(&b[column][i * kBytes]);
    }
}

inline void gather_bfloat16(emulator::Meeting& meeting) {
    gather<2>(meeting, [](const uint8_t* bytes) {
        uint16_t bits;
        std::memcpy(&bits, bytes, 2);
        return decode_bfloat16(bits);
    });
}
inline void gather_float16(emulator::Meeting& meeting) {
    static const std::vector<float> values = [] {
        std::vector<float> all(1 << 16);
        for (int bits = 0; bits < 1 << 16; ++bits) {
            all[bits] = float16_to_float(static_cast<uint16_t>(bits));
        }
        return all;
    }();
    gather<2>(meeting, [](const uint8_t* bytes) {
        uint16_t bits;
        std::memcpy(&bits, bytes, 2);
        return values[bits];
    });
}
inline void gather_int8(emulator::Meeting& meeting) {
    gather<1>(meeting,
              [](const uint8_t* bytes) { return static_cast<float>(static_cast<int8_t>(*bytes)); });
}

/// Element i of a lane's sums is at row g + 8 (i / 2), column 2 t + i % 2.
template <int kDepth, class Sum>
void multiply(const char* kind, void (*gather_all)(emulator::Meeting&), Sum (&c)[4],
              const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::Slot slot{};
    std::memcpy(slot.words, a, sizeof(a));
    std::memcpy(slot.words + 2, b, sizeof(b));
    const emulator::Meeting& meeting = emulator::warp_meeting(kind, slot, gather_all);
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const float* row = meeting.a[g + i / 2 * 8];
        const float* column = meeting.b[2 * t + i % 2];
        double sum = static_cast<double>(c[i]);
        for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(row[k]) * column[k];
        if (sizeof(Sum) == 4 && std::is_integral<Sum>::value && std::fabs(sum) > 2147483647.0) {
            emulator::fail("an int32 sum overflows");
        }
        c[i] = static_cast<Sum>(sum);
        // As a tensor core does: what does not fit is cut off.
        if (!std::is_integral<Sum>::value &&
            std::fabs(static_cast<double>(c[i])) > std::fabs(sum)) {
            c[i] = static_cast<Sum>(std::nextafter(static_cast<float>(c[i]), 0.0F));
        }
    }
}

}  // namespace emulated

struct Bfloat16Mma {
    using Sum = float;
    static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        emulated::multiply<16>("mma bf16", emulated::gather_bfloat16, c, a, b);
    }
};
struct Float16Mma {
    using Sum = float;
    static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        emulated::multiply<16>("mma f16", emulated::gather_float16, c, a, b);
    }
};
struct Int8Mma {
    using Sum = int;
    static void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        emulated::multiply<32>("mma s8", emulated::gather_int8, c, a, b);
    }
};

/// Lane 8 i + j gives row j of matrix i; register i of lane 4 g + t is bytes 4 t … 4 t + 3 of its
/// row g.
inline void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::fail("ldmatrix of unaligned rows");
    emulator::Slot slot{};
    std::memcpy(slot.words, row, 16);
    const emulator::Meeting& meeting = emulator::warp_meeting("ldmatrix", slot);
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(meeting.slots[8 * i + g].words);
        std::memcpy(&d[i], bytes + 4 * t, 4);
    }
}

inline void cp_async_16(void* shared, const void* global, int bytes) {
    emulator::copy_async({shared, global, bytes});
}
inline void cp_async_commit() { emulator::commit_copies(); }
template <int pending>
inline void cp_async_wait() {
    emulator::wait_for_copies(pending);
}

inline uint4 load_streaming(const void* global, bool wanted) {
    if (!wanted) return make_uint4(0, 0, 0, 0);
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) emulator::fail("load of unaligned bytes");
    uint4 value;
    std::memcpy(&value, global, 16);
    return value;
}

}  // namespace clara
