#pragma once

namespace clara_test {

/// Norms, gated activations and rotations of odd sizes and their gradients, against float64.
void elementwise();

}  // namespace clara_test
