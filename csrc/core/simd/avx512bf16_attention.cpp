// Attention of packed documents, by AVX-512's products of bfloat16 values.

#include "core/simd/attention_tiles.hpp"

namespace clara {
namespace {

/// Where things are in the scratch memory.
struct Scratch {
    int64_t keys;    // of a document, up to a whole tile
    char* packed_k;  // by pack_tiles
    char* packed_v;  // by pack_columns
    float* scores;   // [kTileQueries, keys]
    char* weights;   // bfloat16 [kTileQueries, keys]

    Scratch(const AttentionInputs& inputs, int64_t rows, char* memory)
        : keys(whole_tiles(rows) * kTileKeys),
          packed_k(memory),
          packed_v(packed_k + keys * inputs.width * 2),
          scores(reinterpret_cast<float*>(packed_v + keys * inputs.width * 2)),
          weights(reinterpret_cast<char*>(scores + kTileQueries * keys)) {}
};

int64_t scratch_bytes(const AttentionInputs& inputs, int64_t rows) {
    const int64_t values = 2 * inputs.width, scores = int64_t{3} * kTileQueries;  // of two bytes
    return whole_tiles(rows) * kTileKeys * (values + scores) * 2;
}

/// Of the scores of one query, `count` from `begin` on: writes the exponentials of their distance
/// from the largest as bfloat16, 0 where a key is not seen. Returns their sum and the largest.
struct Softmax {
    float sum, largest;
};

Softmax soften(const float* scores, const Seen& seen, int64_t begin, int64_t count, float scale,
               char* weights) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (int64_t i = 0; i < count; i += kLanes) {
        const __m512 score = scaled(scores + i, factor);
        most = _mm512_mask_max_ps(most, seen.lanes(begin + i), most, score);
    }
    const float largest = _mm512_reduce_max_ps(most);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += kLanes) {
        const __m512 score = scaled(scores + i, factor);
        const __m512 below = _mm512_sub_ps(score, _mm512_set1_ps(largest));
        const __m512 power = _mm512_maskz_mov_ps(seen.lanes(begin + i), exponential(below));
        sum = _mm512_add_ps(sum, power);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + 2 * i), rounded(power));
    }
    return {_mm512_reduce_add_ps(sum), largest};
}

void attend_tile(const PackedAttention& call, const Queries& tile, const Scratch& scratch) {
    const TileKeys keys(tile);
    multiply_keys(tile, call.inputs.q, keys, scratch.packed_k, scratch.scores, scratch.keys);
    float factors[kTileQueries];
    for (int64_t i = 0; i < tile.count; ++i) {
        const Softmax made =
            soften(scratch.scores + i * scratch.keys, tile.seen(i), keys.begin, keys.lanes(),
                   call.inputs.scale, scratch.weights + i * scratch.keys * 2);
        factors[i] = 1 / made.sum;
        call.lse[tile.place(i)] = made.largest + __builtin_logf(made.sum);
    }
    weigh(tile, keys, {scratch.weights, scratch.keys, scratch.packed_v, factors, call.out});
}

void attend(const PackedAttention& call, const AttendedDocument& document, int64_t kv_head,
            char* memory) {
    const AttentionInputs& inputs = call.inputs;
    const Scratch scratch(inputs, document.rows, memory);
    pack_tiles({inputs, document, kv_head, inputs.k}, scratch.packed_k);
    pack_columns({inputs, document, kv_head, inputs.v}, scratch.packed_v);
    const Queries all{inputs, document, kv_head, 0, document.queries * inputs.shared()};
    for (int64_t i = 0; i < all.count; i += kTileQueries) {
        attend_tile(call, all.part(i, kTileQueries), scratch);
    }
}

}  // namespace

extern const AttentionKernels kAvx512Attention;
const AttentionKernels kAvx512Attention = {scratch_bytes, attend};

}  // namespace clara
