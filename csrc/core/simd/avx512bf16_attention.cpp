// Attention of packed documents, by AVX-512's products of bfloat16 values. A tile is some queries
// of all heads that share keys; its scores are kept for all keys that it sees, in float32.

#include "core/simd/attention.hpp"
#include "core/simd/dot_bfloat16.hpp"

namespace clara {
namespace {

constexpr int kTileQueries = 12;
constexpr int kTileGroups = 2;
constexpr int64_t kTileKeys = kTileGroups * kLanes;
constexpr int64_t kTileWidth = kTileGroups * kLanes;  // columns of values

int64_t whole_tiles(int64_t keys) { return (keys + kTileKeys - 1) / kTileKeys; }

/// Where things are in the scratch memory.
struct Scratch {
    int64_t keys;    // of a document, up to a whole tile
    char* packed_k;  // tile after tile of keys, as add_products reads them
    char* packed_v;  // kTileWidth columns after another, of all keys
    float* scores;   // [kTileQueries, keys]
    char* weights;   // bfloat16 [kTileQueries, keys]

    Scratch(const PackedAttention& call, int64_t rows, char* memory)
        : keys(whole_tiles(rows) * kTileKeys),
          packed_k(memory),
          packed_v(packed_k + keys * call.width * 2),
          scores(reinterpret_cast<float*>(packed_v + keys * call.width * 2)),
          weights(reinterpret_cast<char*>(scores + kTileQueries * keys)) {}
};

int64_t scratch_bytes(const PackedAttention& call, int64_t rows) {
    const int64_t values = 2 * call.width, scores = int64_t{3} * kTileQueries;  // in two bytes each
    return whole_tiles(rows) * kTileKeys * (values + scores) * 2;
}

void pack_keys(const PackedAttention& call, const AttendedDocument& document, int64_t kv_head,
               const Scratch& scratch) {
    const int64_t stride = call.kv_heads * call.width * 2;
    const char* keys = call.k + document.first_row * stride + kv_head * call.width * 2;
    for (int64_t key = 0; key < scratch.keys; key += kLanes) {
        char* tile = scratch.packed_k + key / kTileKeys * kTileKeys * call.width * 2;
        pack_rows(keys + key * stride, stride, document.rows - key, call.width, kTileGroups,
                  tile + key % kTileKeys / kLanes * kLine);
    }
}

/// Columns of values from `column` on that are computed together.
int64_t groups_from(const PackedAttention& call, int64_t column) {
    return least(kTileGroups, (call.width - column) / kLanes);
}

void pack_values(const PackedAttention& call, const AttendedDocument& document, int64_t kv_head,
                 const Scratch& scratch) {
    const int64_t stride = call.kv_heads * call.width * 2;
    const char* values = call.v + document.first_row * stride + kv_head * call.width * 2;
    char* out = scratch.packed_v;
    for (int64_t column = 0; column < call.width; column += kTileWidth) {
        const int64_t groups = groups_from(call, column);
        for (int64_t key = 0; key < scratch.keys; key += 2) {
            for (int64_t g = 0; g < groups; ++g) {
                __m256i pair[2];
                for (int64_t i = 0; i < 2; ++i) {
                    const char* row = values + (key + i) * stride + (column + g * kLanes) * 2;
                    pair[i] = key + i < document.rows
                                  ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))
                                  : _mm256_setzero_si256();
                }
                _mm512_storeu_si512(out, interleaved(pair[0], pair[1]));
                out += kLine;
            }
        }
    }
}

/// e^x within two units of float32's last place, for x of at most 0. NaN stays NaN.
__m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104), x);  // below it is 0; of NaN the second one is taken
    const __m512 whole = _mm512_roundscale_ps(
        _mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
    constexpr float kNext[] = {1.3981999507e-3f,
                               8.3334519073e-3f,
                               4.1665795894e-2f,
                               1.6666665459e-1f,
                               5.0000001201e-1f,
                               1.0f,
                               1.0f};
#pragma GCC unroll 7
    for (const float next : kNext) {
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
    }
    return _mm512_scalef_ps(sum, whole);
}

/// Keys from `first` to `last` that a query sees.
struct Seen {
    int64_t first, last;

    __mmask16 lanes(int64_t key) const {
        return static_cast<__mmask16>(first_lanes(last - key) & ~first_lanes(first - key));
    }
};

/// Scores by a factor, rounded. Compilers may make one operation of a plain product and the
/// difference after it. Then the largest score would differ from itself by its rounding, whose
/// exponential overflows for huge ones.
__m512 scaled(const float* scores, __m512 factor) {
    return _mm512_mul_round_ps(_mm512_loadu_ps(scores), factor,
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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

/// Up to kTileQueries queries of one head of keys, from number `first` on: row after row, all heads
/// of a row.
struct QueryTile {
    const PackedAttention& call;
    const AttendedDocument& document;
    int64_t kv_head, first, count;

    int64_t shared() const { return call.heads / call.kv_heads; }
    /// Where a query is among [query rows, heads]; the last one where there are fewer.
    int64_t place(int64_t i) const {
        const int64_t number = first + least(i, count - 1);
        return (document.first_query + number / shared()) * call.heads + kv_head * shared() +
               number % shared();
    }
    Seen seen(int64_t i) const {
        const int64_t row = (first + i) / shared() + document.rows - document.queries;
        const bool cut = call.window > 0 && row >= call.window;
        return {cut ? row - call.window + 1 : 0, row + 1};
    }
};

void score(const QueryTile& tile, int64_t begin, int64_t end, const Scratch& scratch) {
    const int64_t width = tile.call.width;
    const char* query[kTileQueries];
    for (int i = 0; i < kTileQueries; ++i) query[i] = tile.call.q + tile.place(i) * width * 2;
    for (int64_t key = begin; key < end; key += kTileKeys) {
        __m512 sum[kTileQueries][kTileGroups];
        clear(sum);
        add_products<kTileQueries, kTileGroups>(sum, scratch.packed_k + key * width * 2, query,
                                                width / 2, nullptr, 0);
#pragma GCC unroll 12
        for (int i = 0; i < kTileQueries; ++i) {
#pragma GCC unroll 2
            for (int g = 0; g < kTileGroups; ++g) {
                _mm512_storeu_ps(scratch.scores + i * scratch.keys + key - begin + g * kLanes,
                                 sum[i][g]);
            }
        }
    }
}

/// Writes the results of columns from `column` on: values by their weights, divided by `sums`.
template <int kGroups>
void weigh(const QueryTile& tile, int64_t column, int64_t begin, int64_t steps,
           const Scratch& scratch, const float* sums) {
    const char* weights[kTileQueries];
    for (int i = 0; i < kTileQueries; ++i) weights[i] = scratch.weights + i * scratch.keys * 2;
    const char* values = scratch.packed_v + scratch.keys * column * 2 + begin / 2 * kGroups * kLine;
    __m512 sum[kTileQueries][kGroups];
    clear(sum);
    add_products<kTileQueries, kGroups>(sum, values, weights, steps, nullptr, 0);
#pragma GCC unroll 12
    for (int i = 0; i < kTileQueries; ++i) {
        if (i >= tile.count) break;
        const __m512 factor = _mm512_set1_ps(1 / sums[i]);
        char* to = tile.call.out + (tile.place(i) * tile.call.width + column) * 2;
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + g * kLanes * 2),
                                rounded(_mm512_mul_ps(sum[i][g], factor)));
        }
    }
}

void attend_tile(const QueryTile& tile, const Scratch& scratch) {
    const int64_t begin = tile.seen(0).first / kTileKeys * kTileKeys;
    const int64_t last = tile.seen(tile.count - 1).last;
    score(tile, begin, last, scratch);
    const int64_t lanes = whole_tiles(last - begin) * kTileKeys;
    float sums[kTileQueries];
    for (int64_t i = 0; i < tile.count; ++i) {
        const Softmax made = soften(scratch.scores + i * scratch.keys, tile.seen(i), begin, lanes,
                                    tile.call.scale, scratch.weights + i * scratch.keys * 2);
        sums[i] = made.sum;
        tile.call.lse[tile.place(i)] = made.largest + __builtin_logf(made.sum);
    }
    const int64_t steps = (last - begin + 1) / 2;
    for (int64_t column = 0; column < tile.call.width; column += kTileWidth) {
        if (groups_from(tile.call, column) == kTileGroups) {
            weigh<kTileGroups>(tile, column, begin, steps, scratch, sums);
        } else {
            weigh<1>(tile, column, begin, steps, scratch, sums);
        }
    }
}

void attend(const PackedAttention& call, const AttendedDocument& document, int64_t kv_head,
            char* memory) {
    const Scratch scratch(call, document.rows, memory);
    pack_keys(call, document, kv_head, scratch);
    pack_values(call, document, kv_head, scratch);
    const int64_t queries = document.queries * (call.heads / call.kv_heads);
    for (int64_t first = 0; first < queries; first += kTileQueries) {
        attend_tile({call, document, kv_head, first, least(kTileQueries, queries - first)},
                    scratch);
    }
}

}  // namespace

extern const AttentionKernels kAvx512Attention;
const AttentionKernels kAvx512Attention = {scratch_bytes, attend};

}  // namespace clara
