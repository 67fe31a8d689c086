#pragma once

namespace clara_test {

/// Linear layers and attention in bfloat16 of odd sizes, where there are kernels for them, against
/// float64.
void bfloat16();

}  // namespace clara_test
