#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "core/rows.hpp"

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

namespace clara_test {

/// Random numbers that are the same with every compiler and library.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u) {}

    uint64_t bits() {
        state_ += 0x9e3779b97f4a7c15u;
        uint64_t x = state_;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
    }
    int64_t below(int64_t limit) {
        return static_cast<int64_t>(bits() % static_cast<uint64_t>(limit));
    }
    /// In (-1, 1), more often near 0.
    float value() { return (unit() + unit() + unit()) / 3; }

private:
    float unit() { return static_cast<float>(static_cast<int64_t>(bits() >> 40)) * 0x1p-23f - 1; }

    uint64_t state_;
};

/// Where the rows of a matrix lie, in elements: `shift` before the first, which is aligned to 64
/// bytes without it, and `gap` between two.
struct Layout {
    int64_t shift = 0;
    int64_t gap = 0;
};

/// Random rows in a block of memory that ends with the last of them. What is not part of a row is
/// NaN, and address sanitizers see it being read.
class Matrix {
public:
    Matrix(clara::DataType type, int64_t count, int64_t columns, uint64_t seed, Layout layout = {})
        : type_(type),
          count_(count),
          columns_(columns),
          stride_(columns + layout.gap),
          shift_(layout.shift),
          size_(item() * (shift_ + (count > 0 ? (count - 1) * stride_ + columns : 0))),
          block_(static_cast<char*>(::operator new(size_, kAlignment))) {
        std::memset(block_, 0xff, size_);
        Random random(seed);
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t j = 0; j < columns; ++j) {
                put(i, j, type == clara::DataType::int8 ? random.value() * 128 : random.value());
            }
        }
        ASAN_POISON_MEMORY_REGION(block_, shift_ * item());
        for (int64_t i = 0; i + 1 < count; ++i) {
            ASAN_POISON_MEMORY_REGION(address(i, columns), layout.gap * item());
        }
    }
    ~Matrix() {
        ASAN_UNPOISON_MEMORY_REGION(block_, size_);
        ::operator delete(block_, kAlignment);
    }
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;

    clara::Rows rows() const {
        return {block_ + shift_ * item(), type_, count_, columns_, stride_};
    }
    /// Query `i` alone.
    clara::Rows row(int64_t i) const { return {address(i, 0), type_, 1, columns_, stride_}; }
    clara::DataType type() const { return type_; }
    int64_t count() const { return count_; }
    int64_t columns() const { return columns_; }

    /// Rounds towards zero to what the type can hold.
    void put(int64_t i, int64_t j, float value) {
        uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof(bits));
        if (type_ == clara::DataType::int8) {
            bits = static_cast<uint32_t>(static_cast<int32_t>(value)) & 0xffu;
        } else if (type_ == clara::DataType::float16) {
            bits = float16(value);
        } else if (type_ == clara::DataType::bfloat16) {
            bits = std::isnan(value) ? 0x7fc0u : bits >> 16;
        }
        std::memcpy(address(i, j), &bits, item());  // all these machines are little-endian
    }
    void fill(int64_t i, float value) {
        for (int64_t j = 0; j < columns_; ++j) put(i, j, value);
    }
    void copy_row(int64_t from, int64_t to) {
        std::memcpy(address(to, 0), address(from, 0), columns_ * item());
    }

    /// Read without any of the code under test.
    double at(int64_t i, int64_t j) const {
        if (type_ == clara::DataType::int8) return static_cast<signed char>(*address(i, j));
        uint32_t bits = 0;
        std::memcpy(&bits, address(i, j), item());
        if (type_ == clara::DataType::float16) {
            const int mantissa = static_cast<int>(bits & 0x3ffu);
            const int exponent = static_cast<int>(bits >> 10 & 0x1fu);
            double value = exponent == 0 ? std::ldexp(mantissa, -24)
                                         : std::ldexp(mantissa + 1024, exponent - 25);
            if (exponent == 31) {
                value = mantissa == 0 ? std::numeric_limits<double>::infinity()
                                      : std::numeric_limits<double>::quiet_NaN();
            }
            return (bits & 0x8000u) != 0 ? -value : value;
        }
        if (type_ == clara::DataType::bfloat16) bits <<= 16;
        float value = 0;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    }

    std::vector<double> values(int64_t i) const {
        std::vector<double> values(columns_);
        for (int64_t j = 0; j < columns_; ++j) values[j] = at(i, j);
        return values;
    }

private:
    static constexpr std::align_val_t kAlignment{64};

    static uint32_t float16(float value) {
        const uint32_t sign = std::signbit(value) ? 0x8000u : 0;
        if (std::isnan(value)) return sign | 0x7e00u;
        const float magnitude = std::abs(value);
        if (magnitude == 0) return sign;
        if (magnitude >= 0x1p16f) return sign | 0x7c00u;
        const int exponent = std::max(std::ilogb(magnitude), -14);
        const auto mantissa = static_cast<uint32_t>(std::ldexp(magnitude, 10 - exponent));
        return sign | ((static_cast<uint32_t>(exponent + 14) << 10) + mantissa);
    }

    int64_t item() const { return clara::item_size(type_); }
    char* address(int64_t i, int64_t j) const {
        return block_ + (shift_ + i * stride_ + j) * item();
    }

    clara::DataType type_;
    int64_t count_, columns_, stride_, shift_, size_;
    char* block_;
};

}  // namespace clara_test
