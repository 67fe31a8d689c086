// What attention of packed documents and its gradients have in common, by AVX-512's products of
// bfloat16 values. A tile is some queries of all heads that share keys; its scores are kept for all
// keys that it sees, in float32. As in core/simd/dot_bfloat16.hpp, all is in an unnamed namespace.

#pragma once

#include "core/simd/attention.hpp"
#include "core/simd/dot_bfloat16.hpp"

namespace clara {
namespace {

constexpr int kTileQueries = 12;
constexpr int kTileGroups = 2;
constexpr int64_t kTileKeys = kTileGroups * kLanes;
constexpr int64_t kTileWidth = kTileGroups * kLanes;  // columns of values

inline int64_t whole_tiles(int64_t keys) { return (keys + kTileKeys - 1) / kTileKeys; }

/// The keys or values of one head and document.
struct HeadRows {
    const char* first;
    int64_t stride, rows, width;

    HeadRows(const AttentionInputs& inputs, const AttendedDocument& document, int64_t kv_head,
             const char* all)
        : first(all + (document.first_row * inputs.kv_heads + kv_head) * inputs.width * 2),
          stride(inputs.kv_heads * inputs.width * 2),
          rows(document.rows),
          width(inputs.width) {}
};

/// Packs rows up to a whole tile, tile after tile, as add_products reads them for products with
/// rows of queries.
inline void pack_tiles(const HeadRows& head, char* out) {
    for (int64_t row = 0; row < whole_tiles(head.rows) * kTileKeys; row += kLanes) {
        char* tile = out + row / kTileKeys * kTileKeys * head.width * 2;
        pack_rows(head.first + row * head.stride, head.stride, head.rows - row, head.width,
                  kTileGroups, tile + row % kTileKeys / kLanes * kLine);
    }
}

/// Columns from `column` on that are computed together, in groups of lanes.
inline int64_t groups_from(int64_t width, int64_t column) {
    return least(kTileGroups, (width - column) / kLanes);
}

/// Packs kTileWidth columns after another, of all rows up to a whole tile, as add_products reads
/// them for products with a weight for each row.
inline void pack_columns(const HeadRows& head, char* out) {
    const int64_t rows = whole_tiles(head.rows) * kTileKeys;
    for (int64_t column = 0; column < head.width; column += kTileWidth) {
        const int64_t groups = groups_from(head.width, column);
        for (int64_t row = 0; row < rows; row += 2) {
            for (int64_t g = 0; g < groups; ++g) {
                __m256i pair[2];
                for (int64_t i = 0; i < 2; ++i) {
                    const char* from =
                        head.first + (row + i) * head.stride + (column + g * kLanes) * 2;
                    pair[i] = row + i < head.rows
                                  ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                  : _mm256_setzero_si256();
                }
                _mm512_storeu_si512(out, interleaved(pair[0], pair[1]));
                out += kLine;
            }
        }
    }
}

/// e^x within two units of float32's last place, for x of at most 0. NaN stays NaN.
inline __m512 exponential(__m512 x) {
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

/// Scores by a factor, rounded. Compilers may make one operation of a plain product and the
/// difference after it. Then the largest score would differ from itself by its rounding, whose
/// exponential overflows for huge ones.
inline __m512 scaled(const float* scores, __m512 factor) {
    return _mm512_mul_round_ps(_mm512_loadu_ps(scores), factor,
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/// Keys from `first` to `last` that a query sees.
struct Seen {
    int64_t first, last;

    __mmask16 lanes(int64_t key) const {
        return static_cast<__mmask16>(first_lanes(last - key) & ~first_lanes(first - key));
    }
};

/// Queries of one head of keys, from number `first` on: row after row, all heads of a row.
struct Queries {
    const AttentionInputs& inputs;
    const AttendedDocument& document;
    int64_t kv_head, first, count;

    /// Where a query is among [query rows, heads]; the last one where there are fewer.
    int64_t place(int64_t i) const {
        const int64_t number = first + least(i, count - 1), shared = inputs.shared();
        return (document.first_query + number / shared) * inputs.heads + kv_head * shared +
               number % shared;
    }

    Seen seen(int64_t i) const {
        const int64_t row = (first + i) / inputs.shared() + document.rows - document.queries;
        const bool cut = inputs.window > 0 && row >= inputs.window;
        return {cut ? row - inputs.window + 1 : 0, row + 1};
    }

    /// Those from the i-th on, at most `most`.
    Queries part(int64_t i, int64_t most) const {
        return {inputs, document, kv_head, first + i, least(most, count - i)};
    }
};

/// Keys of whole tiles from `begin` on that some of a tile's queries see; `last` is behind them.
struct TileKeys {
    int64_t begin, last;

    explicit TileKeys(const Queries& tile)
        : begin(tile.seen(0).first / kTileKeys * kTileKeys), last(tile.seen(tile.count - 1).last) {}

    int64_t lanes() const { return whole_tiles(last - begin) * kTileKeys; }
};

/// Writes products of a tile's queries, or whatever lies where they do, with packed keys or values,
/// `stride` from one query to the next.
inline void multiply_keys(const Queries& tile, const char* rows, const TileKeys& keys,
                          const char* packed, float* products, int64_t stride) {
    const int64_t width = tile.inputs.width;
    const char* row[kTileQueries];
    for (int i = 0; i < kTileQueries; ++i) row[i] = rows + tile.place(i) * width * 2;
    for (int64_t key = keys.begin; key < keys.last; key += kTileKeys) {
        __m512 sum[kTileQueries][kTileGroups];
        clear(sum);
        add_products<kTileQueries, kTileGroups>(sum, packed + key * width * 2, row, width / 2,
                                                nullptr, 0);
        store(sum, products + key - keys.begin, stride);
    }
}

/// Rows of keys or values by the weights that each query of a tile gives them.
struct Weighing {
    const char* weights;  // bfloat16 [kTileQueries, keys], from the first key that the tile sees on
    int64_t keys;
    const char* packed;    // by pack_columns
    const float* factors;  // what each query's sum is multiplied by
    char* out;             // bfloat16, of the shape of queries
};

template <int kGroups>
void weigh_columns(const Queries& tile, const TileKeys& keys, int64_t column,
                   const Weighing& work) {
    const char* weights[kTileQueries];
    for (int i = 0; i < kTileQueries; ++i) weights[i] = work.weights + i * work.keys * 2;
    const char* packed = work.packed + work.keys * column * 2 + keys.begin / 2 * kGroups * kLine;
    __m512 sum[kTileQueries][kGroups];
    clear(sum);
    add_products<kTileQueries, kGroups>(sum, packed, weights, (keys.last - keys.begin + 1) / 2,
                                        nullptr, 0);
#pragma GCC unroll 12
    for (int i = 0; i < kTileQueries; ++i) {
        if (i >= tile.count) break;
        const __m512 factor = _mm512_set1_ps(work.factors[i]);
        char* to = work.out + (tile.place(i) * tile.inputs.width + column) * 2;
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + g * kLanes * 2),
                                rounded(_mm512_mul_ps(sum[i][g], factor)));
        }
    }
}

/// Writes the sums of all queries of a tile.
inline void weigh(const Queries& tile, const TileKeys& keys, const Weighing& work) {
    for (int64_t column = 0; column < tile.inputs.width; column += kTileWidth) {
        if (groups_from(tile.inputs.width, column) == kTileGroups) {
            weigh_columns<kTileGroups>(tile, keys, column, work);
        } else {
            weigh_columns<1>(tile, keys, column, work);
        }
    }
}

}  // namespace
}  // namespace clara
