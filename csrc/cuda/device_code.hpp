#pragma once

#include <string>

namespace clara {

/// Version of the CUDA runtime linked into this module, such as "13.0". Needs no driver.
std::string cuda_runtime_version();

struct DeviceCode {
    int binary;  // architecture of the machine code the device would run, such as 90
    int ptx;     // architecture of the PTX it was compiled from, such as 120
};

/// What CUDA device `device` would run of this module. Throws std::runtime_error with CUDA's own
/// words when there is no such device, no driver, or no code that the device can run.
DeviceCode cuda_device_code(int device);

}  // namespace clara
