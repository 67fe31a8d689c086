#pragma once

#include <cstdint>
#include <memory>

#include "core/simd/tile_work.hpp"

namespace clara {

/// Memory that begins with a cache line and is not cleared.
class AlignedBytes {
public:
    explicit AlignedBytes(int64_t bytes) : bytes_(new char[bytes + kCacheLine]) {
        const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(bytes_.get()));
        first_ = (kCacheLine - place % kCacheLine) % kCacheLine;
    }

    char* data() { return bytes_.get() + first_; }

private:
    std::unique_ptr<char[]> bytes_;
    int64_t first_;
};

}  // namespace clara
