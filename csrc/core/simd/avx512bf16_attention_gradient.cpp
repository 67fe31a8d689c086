// Gradients of attention of packed documents, by AVX-512's products of bfloat16 values. A tile's
// weights and the gradients of its scores are kept twice: as rows, which weigh keys for the
// gradients of queries, and in pairs of queries along lanes of keys. A block of tiles is then added
// to the gradients of keys and values, which are transposed until all queries were there.

#include "core/simd/attention_tiles.hpp"

namespace clara {
namespace {

constexpr int64_t kBlockTiles = 8;
constexpr int64_t kBlockQueries = kBlockTiles * kTileQueries;
constexpr int64_t kBlockPairs = kBlockQueries / 2;
constexpr int64_t kTilePairs = kTileQueries / 2;
constexpr int64_t kPairBytes = kTileGroups * kLine;        // of two queries and a tile of keys
constexpr int64_t kPairsBytes = kBlockPairs * kPairBytes;  // of a block and a tile of keys
constexpr int kSumColumns = 8;                             // that are summed together
constexpr int64_t kTransposedBytes = kBlockQueries * 2;    // of a column of a block's queries
constexpr int64_t kTransposedPairs = kLanes;               // that are transposed together
static_assert(kBlockPairs % kTransposedPairs == 0);

/// Where things are in the scratch memory.
struct Scratch {
    int64_t keys;         // of a document, up to a whole tile
    char* packed_k;       // by pack_tiles
    char* packed_v;       // the same
    char* key_columns;    // by pack_columns
    char* queries;        // bfloat16 [width, kBlockQueries]
    char* grads;          // the same of the gradients of results
    char* weight_pairs;   // tile of keys after tile, bfloat16 [kBlockPairs, kTileKeys, 2]
    char* score_pairs;    // the same of the scores' gradients
    char* score_rows;     // bfloat16 [kTileQueries, keys]
    float* scores;        // [kTileQueries, keys]
    float* weight_grads;  // the same
    float* k_sums;        // tile of keys after tile, [width, kTileKeys]
    float* v_sums;        // the same

    Scratch(const AttentionInputs& inputs, int64_t rows, char* memory)
        : keys(whole_tiles(rows) * kTileKeys),
          packed_k(memory),
          packed_v(packed_k + keys * inputs.width * 2),
          key_columns(packed_v + keys * inputs.width * 2),
          queries(key_columns + keys * inputs.width * 2),
          grads(queries + kTransposedBytes * inputs.width),
          weight_pairs(grads + kTransposedBytes * inputs.width),
          score_pairs(weight_pairs + keys / kTileKeys * kPairsBytes),
          score_rows(score_pairs + keys / kTileKeys * kPairsBytes),
          scores(reinterpret_cast<float*>(score_rows + kTileQueries * keys * 2)),
          weight_grads(scores + kTileQueries * keys),
          k_sums(weight_grads + kTileQueries * keys),
          v_sums(k_sums + inputs.width * keys) {}
};

int64_t scratch_bytes(const AttentionInputs& inputs, int64_t rows) {
    const int64_t packed = 3 * inputs.width * 2, sums = 2 * inputs.width * 4;
    const int64_t of_tile = int64_t{kTileQueries} * (2 + 4 + 4);
    const int64_t of_key = packed + sums + of_tile + 2 * kPairsBytes / kTileKeys;
    return whole_tiles(rows) * kTileKeys * of_key + 2 * kTransposedBytes * inputs.width;
}

/// Writes columns of a block's queries, or whatever lies where they do, as rows: 0 behind the last.
void transpose_block(const Queries& block, const char* rows, char* out) {
    const int64_t width = block.inputs.width;
    const auto values = [&](int64_t i, int64_t column) {
        const char* from = rows + (block.place(i) * width + column) * 2;
        return i < block.count ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                               : _mm256_setzero_si256();
    };
    for (int64_t pair = 0; pair < kBlockPairs; pair += kTransposedPairs) {
        for (int64_t column = 0; column < width; column += kLanes) {
            transpose_rows([&](int64_t i) { return values(2 * pair + i, column); },
                           out + column * kTransposedBytes + pair * 4, kTransposedBytes);
        }
    }
}

/// A query's softmax, and the mean of its weights' gradients by their weights.
struct Softmax {
    float inverse_sum, mean;
};

/// Replaces `count` scores of one query, of keys from `begin` on, by the exponentials of their
/// distance from the largest, 0 where a key is not seen.
Softmax soften(float* scores, const float* weight_grads, const Seen& seen, int64_t begin,
               int64_t count, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (int64_t i = 0; i < count; i += kLanes) {
        most = _mm512_mask_max_ps(most, seen.lanes(begin + i), most, scaled(scores + i, factor));
    }
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 sum = _mm512_setzero_ps(), weighed = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += kLanes) {
        const __mmask16 lanes = seen.lanes(begin + i);
        const __m512 below = _mm512_sub_ps(scaled(scores + i, factor), largest);
        const __m512 power = _mm512_maskz_mov_ps(lanes, exponential(below));
        sum = _mm512_add_ps(sum, power);
        weighed = _mm512_mask3_fmadd_ps(power, _mm512_loadu_ps(weight_grads + i), weighed, lanes);
        _mm512_storeu_ps(scores + i, power);
    }
    const float all = _mm512_reduce_add_ps(sum);
    return {1 / all, _mm512_reduce_add_ps(weighed) / all};
}

/// Weights of some keys, and the gradients of their scores before the scale.
struct Weights {
    __m256i values, score_grads;
};

Weights weights_of(const float* powers, const float* weight_grads, const Softmax& softmax,
                   __mmask16 lanes) {
    const __m512 weight =
        _mm512_maskz_mul_ps(lanes, _mm512_loadu_ps(powers), _mm512_set1_ps(softmax.inverse_sum));
    const __m512 above = _mm512_sub_ps(_mm512_loadu_ps(weight_grads), _mm512_set1_ps(softmax.mean));
    return {rounded(weight), rounded(_mm512_maskz_mul_ps(lanes, weight, above))};
}

/// Writes what a tile's two queries from the i-th on make of products: rows, and the pair at
/// `pair` of the block.
void soften_pair(const Queries& tile, int64_t i, const TileKeys& keys, int64_t pair,
                 const Scratch& scratch) {
    const int64_t count = keys.lanes();
    Seen seen[2];
    Softmax softmax[2];
    for (int64_t at = 0; at < 2; ++at) {
        const bool there = i + at < tile.count;
        seen[at] = there ? tile.seen(i + at) : Seen{0, 0};
        const int64_t row = (i + at) * scratch.keys;
        softmax[at] = there ? soften(scratch.scores + row, scratch.weight_grads + row, seen[at],
                                     keys.begin, count, tile.inputs.scale)
                            : Softmax{0, 0};
    }
    for (int64_t key = 0; key < count; key += kLanes) {
        Weights weights[2];
        for (int64_t at = 0; at < 2; ++at) {
            const int64_t place = (i + at) * scratch.keys + key;
            weights[at] = weights_of(scratch.scores + place, scratch.weight_grads + place,
                                     softmax[at], seen[at].lanes(keys.begin + key));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(scratch.score_rows + place * 2),
                                weights[at].score_grads);
        }
        const int64_t number = keys.begin + key;
        const int64_t to = number / kTileKeys * kPairsBytes + pair * kPairBytes +
                           number % kTileKeys / kLanes * kLine;
        _mm512_storeu_si512(scratch.weight_pairs + to,
                            interleaved(weights[0].values, weights[1].values));
        _mm512_storeu_si512(scratch.score_pairs + to,
                            interleaved(weights[0].score_grads, weights[1].score_grads));
    }
}

/// Writes the gradients of a tile's queries, and its pairs from `pair` of the block on.
void differentiate_tile(const AttentionGradient& call, const Queries& tile, const TileKeys& keys,
                        int64_t pair, const Scratch& scratch) {
    multiply_keys(tile, call.inputs.q, keys, scratch.packed_k, scratch.scores, scratch.keys);
    multiply_keys(tile, call.grad, keys, scratch.packed_v, scratch.weight_grads, scratch.keys);
    for (int64_t i = 0; i < kTileQueries; i += 2) {
        soften_pair(tile, i, keys, pair + i / 2, scratch);
    }
    float factors[kTileQueries];
    for (float& factor : factors) factor = call.inputs.scale;
    weigh(tile, keys, {scratch.score_rows, scratch.keys, scratch.key_columns, factors, call.q});
}

/// Adds to the sums of a tile of keys: rows of transposed queries by pairs of their weights.
void add_queries(const char* queries, const char* pairs, int64_t steps, int64_t width,
                 float* sums) {
    for (int64_t column = 0; column < width; column += kSumColumns) {
        __m512 sum[kSumColumns][kTileGroups];
        const char* row[kSumColumns];
        float* to = sums + column * kTileKeys;
        load(sum, to, kTileKeys);
#pragma GCC unroll 8
        for (int j = 0; j < kSumColumns; ++j) row[j] = queries + (column + j) * kTransposedBytes;
        add_products<kSumColumns, kTileGroups>(sum, pairs, row, steps, nullptr, 0);
        store(sum, to, kTileKeys);
    }
}

void differentiate_block(const AttentionGradient& call, const Queries& block,
                         const Scratch& scratch) {
    const int64_t width = call.inputs.width;
    transpose_block(block, call.inputs.q, scratch.queries);
    transpose_block(block, call.grad, scratch.grads);
    int64_t begin[kBlockTiles], last[kBlockTiles], tiles = 0;
    for (; tiles * kTileQueries < block.count; ++tiles) {
        const Queries tile = block.part(tiles * kTileQueries, kTileQueries);
        const TileKeys keys(tile);
        differentiate_tile(call, tile, keys, tiles * kTilePairs, scratch);
        begin[tiles] = keys.begin;
        last[tiles] = keys.last;
    }
    // Later tiles see later keys, so those that see some of a tile's are neighbours.
    int64_t first = 0, end = 0;
    const TileKeys all(block);
    for (int64_t key = all.begin; key < all.last; key += kTileKeys) {
        while (first < tiles && last[first] <= key) ++first;
        while (end < tiles && begin[end] <= key) ++end;
        const int64_t pair = first * kTilePairs, steps = (end - first) * kTilePairs;
        const int64_t pairs = key / kTileKeys * kPairsBytes + pair * kPairBytes;
        add_queries(scratch.queries + pair * 4, scratch.score_pairs + pairs, steps, width,
                    scratch.k_sums + key * width);
        add_queries(scratch.grads + pair * 4, scratch.weight_pairs + pairs, steps, width,
                    scratch.v_sums + key * width);
    }
}

/// Writes transposed sums by a factor as rows of bfloat16 values.
void store(const AttentionInputs& inputs, const AttendedDocument& document, int64_t kv_head,
           const float* sums, float factor, char* out) {
    const __m512 scale = _mm512_set1_ps(factor);
    for (int64_t key = 0; key < document.rows; key += kLanes) {
        const float* tile =
            sums + key / kTileKeys * kTileKeys * inputs.width + key % kTileKeys / kLanes * kLanes;
        for (int64_t column = 0; column < inputs.width; column += kLanes) {
            __m512i values[16];
            for (int64_t i = 0; i < kLanes; ++i) {
                values[i] = _mm512_loadu_si512(tile + (column + i) * kTileKeys);
            }
            transpose(values);
            for (int64_t i = 0; i < least(kLanes, document.rows - key); ++i) {
                const int64_t row = (document.first_row + key + i) * inputs.kv_heads + kv_head;
                _mm256_storeu_si256(
                    reinterpret_cast<__m256i*>(out + (row * inputs.width + column) * 2),
                    rounded(_mm512_mul_ps(_mm512_castsi512_ps(values[i]), scale)));
            }
        }
    }
}

void differentiate(const AttentionGradient& call, const AttendedDocument& document, int64_t kv_head,
                   char* memory) {
    const AttentionInputs& inputs = call.inputs;
    const Scratch scratch(inputs, document.rows, memory);
    pack_tiles({inputs, document, kv_head, inputs.k}, scratch.packed_k);
    pack_tiles({inputs, document, kv_head, inputs.v}, scratch.packed_v);
    pack_columns({inputs, document, kv_head, inputs.k}, scratch.key_columns);
    const int64_t sums = inputs.width * scratch.keys;
    __builtin_memset(scratch.k_sums, 0, sums * sizeof(float));
    __builtin_memset(scratch.v_sums, 0, sums * sizeof(float));
    const Queries all{inputs, document, kv_head, 0, document.queries * inputs.shared()};
    for (int64_t i = 0; i < all.count; i += kBlockQueries) {
        differentiate_block(call, all.part(i, kBlockQueries), scratch);
    }
    store(inputs, document, kv_head, scratch.k_sums, inputs.scale, call.k);
    store(inputs, document, kv_head, scratch.v_sums, 1, call.v);
}

}  // namespace

extern const AttentionGradientKernels kAvx512AttentionGradient;
const AttentionGradientKernels kAvx512AttentionGradient = {scratch_bytes, differentiate};

}  // namespace clara
