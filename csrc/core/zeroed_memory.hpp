#pragma once

#include <cstddef>
#include <memory>

namespace clara {

/// Bytes that are zero at first, and begin with a cache line.
class ZeroedMemory {
public:
    explicit ZeroedMemory(size_t bytes);

    char* data() const { return data_.get(); }

private:
    struct Free {
        void operator()(char* data) const;
    };

    std::unique_ptr<char, Free> data_;
};

}  // namespace clara
