#pragma once

namespace clara_test {

/// Linear layers of every type and of odd sizes, against float64.
void products();

/// NaN and infinity in bfloat16 weights and in inputs, which reach the outputs that they should.
void infinite_weights();

/// Steps of a decoder: whatever the threads, the same bits.
void decoder_steps();

}  // namespace clara_test
