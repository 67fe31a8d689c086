#pragma once

#include <cstdint>
#include <vector>

#include "core/decoder/products.hpp"

namespace clara {

/// A layer of a decoder as Llama has it: normalised by root mean square before attention and before
/// a gated SiLU network, whose results are added to the states.
struct DecoderLayer {
    const float* attention_norm;  // [hidden]
    LinearLayer query, key, value, output;
    const float* query_norm;  // [head_dim], of each head, or null
    const float* key_norm;
    const float* network_norm;  // [hidden]
    LinearLayer gate, up, down;
};

/// A decoder with its output head. All addresses are kept alive by the caller.
struct Decoder {
    int64_t heads, key_heads, head_dim;
    float epsilon;        // of norms
    float score_scaling;  // of products of queries and keys
    std::vector<DecoderLayer> layers;
    const float* final_norm;  // [hidden]
    LinearLayer head;

    int64_t hidden() const { return head.weight.columns; }
    int64_t attended() const { return heads * head_dim; }
    int64_t intermediate() const { return layers.front().gate.weight.count; }
    int64_t key_width() const { return key_heads * head_dim; }
};

/// Keys and values of the tokens before, of sequences of unequal length.
struct DecoderCache {
    float* keys;    // [layers, sequences, key_heads, capacity, head_dim]
    float* values;  // [layers, sequences, key_heads, head_dim, capacity]
    int64_t sequences, capacity;
};

/// One token of each sequence.
struct DecoderStep {
    const float* embeddings;  // [sequences, hidden]
    const float* cosines;     // [sequences, head_dim], of the rotation by each token's position
    const float* sines;       // [sequences, head_dim]
    const int64_t* lengths;   // [sequences], tokens in the cache; less than its capacity
    float* logits;            // [sequences, vocabulary]
};

/// As many of `threads` as have enough to do in a step.
int useful_threads(const Decoder& decoder, int threads);

/// Computes the logits after one more token of each sequence, and puts its keys and values into the
/// cache. States are float32 throughout.
void decode(const Decoder& decoder, const DecoderCache& cache, const DecoderStep& step,
            int threads);

}  // namespace clara
