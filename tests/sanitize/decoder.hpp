#pragma once

namespace clara_test {

/// Linear layers of every type and of odd sizes, against float64.
void products();

/// Steps of a decoder: whatever the threads, the same bits.
void decoder_steps();

}  // namespace clara_test
