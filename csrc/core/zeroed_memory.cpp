#include "core/zeroed_memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include "core/simd/tile_work.hpp"

namespace clara {
ZeroedMemory::ZeroedMemory(size_t bytes) {
    const size_t whole = (bytes / kCacheLine + 1) * kCacheLine;
    // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the pointer that Free takes
    data_.reset(static_cast<char*>(std::aligned_alloc(kCacheLine, whole)));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
}

void ZeroedMemory::Free::operator()(char* data) const {
    // NOLINTNEXTLINE(cppcoreguidelines-no-malloc,cppcoreguidelines-owning-memory)
    std::free(data);
}

}  // namespace clara
