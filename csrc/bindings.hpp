#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace clara {

inline void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

/// Defines what `core/decoder` offers.
void define_decoder(pybind11::module_& module);

/// Defines what `core/linear` and `core/attention` offer.
void define_bfloat16(pybind11::module_& module);

/// Defines what `core/elementwise` offers.
void define_elementwise(pybind11::module_& module);

}  // namespace clara
