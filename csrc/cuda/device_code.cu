#include <cuda_runtime_api.h>

#include <stdexcept>

#include "cuda/device_code.hpp"

namespace clara {
namespace {

__global__ void probe() {}

void check(cudaError_t status) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // reading it clears it, so that no later call reports this one
    throw std::runtime_error(cudaGetErrorString(status));
}

/// Makes `device` current for a scope.
class CurrentDevice {
public:
    explicit CurrentDevice(int device) {
        check(cudaGetDevice(&previous_));
        check(cudaSetDevice(device));
    }
    ~CurrentDevice() { cudaSetDevice(previous_); }

private:
    int previous_ = 0;
};

}  // namespace

std::string cuda_runtime_version() {
    int version = 0;
    check(cudaRuntimeGetVersion(&version));
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

DeviceCode cuda_device_code(int device) {
    const CurrentDevice current(device);
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, probe));
    return {attributes.binaryVersion, attributes.ptxVersion};
}

}  // namespace clara
