#include "cuda/current_device.hpp"
#include "cuda/device_code.hpp"

namespace clara {
namespace {

__global__ void probe() {}

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
