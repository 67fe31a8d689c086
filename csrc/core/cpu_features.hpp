#pragma once

#include <string>
#include <vector>

namespace clara {

/// Instruction sets that this build's code may use, the architecture's baseline first.
std::vector<std::string> compiled_simd();

/// Instruction sets that this machine offers, of those the library knows.
std::vector<std::string> detected_simd();

}  // namespace clara
