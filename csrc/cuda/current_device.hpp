#pragma once

#include <stdexcept>

#include "cuda/platform.cuh"

namespace clara {

inline void check(cudaError_t status) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // reading it clears it, so that no later call reports this one
    throw std::runtime_error(cudaGetErrorString(status));
}

/// Makes `device` current for a scope.
class CurrentDevice {
public:
    explicit CurrentDevice(int device) {
        check(cudaGetDevice(&previous_));
        changed_ = previous_ != device;
        if (changed_) check(cudaSetDevice(device));
    }
    ~CurrentDevice() {
        if (changed_) cudaSetDevice(previous_);  // which makes a context on a device that has none
    }
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    int previous_ = 0;
    bool changed_ = false;
};

inline int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
}

}  // namespace clara
