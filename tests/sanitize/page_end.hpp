#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>

namespace clara_test {

/// Memory that ends where no more may be read, whatever reads it.
class PageEnd {
public:
    explicit PageEnd(int64_t bytes)
        : page_(sysconf(_SC_PAGESIZE)),
          bytes_(bytes),
          readable_((bytes + page_ - 1) / page_ * page_) {
        void* memory = mmap(nullptr, readable_ + page_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("no memory");
        memory_ = static_cast<char*>(memory);
        if (mprotect(memory_ + readable_, page_, PROT_NONE) != 0) {
            throw std::runtime_error("memory cannot be protected");
        }
    }
    ~PageEnd() { munmap(memory_, readable_ + page_); }
    PageEnd(const PageEnd&) = delete;
    PageEnd& operator=(const PageEnd&) = delete;

    char* address() const { return memory_ + readable_ - bytes_; }

private:
    int64_t page_, bytes_, readable_;
    char* memory_;
};

}  // namespace clara_test
