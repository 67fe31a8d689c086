#include "core/scorer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "core/inverse_norms.hpp"

namespace clara {
namespace {

constexpr int kSomeRows = 64, kManyRows = 128;  // of a block
constexpr int64_t kFewQueries = 24;             // which wait for memory more than they multiply
constexpr int64_t kSecondLevelCache = 1 << 20;  // bytes of it that queries may take
constexpr int64_t kPage = 4096;                 // what the sets of a cache repeat after, or a part

constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

/// The more queries, the more rows are worth keeping in the second-level cache while the queries of
/// a tile, once read, stay in the first: above all where not all queries fit there as well. Panels
/// read queries so fast that these had better come from further away for very many rows only.
int Scorer::block_rows(const PackedQueries& queries, const PanelKernels* panels) {
    const int64_t bytes = queries.count() * queries.chunks().count * queries.stride();
    const bool fits = bytes <= kSecondLevelCache, few = queries.count() <= kFewQueries;
    if (panels != nullptr) return !fits ? RowBlock::kMost : few ? kSomeRows : kManyRows;
    return few ? kFilterRows : fits ? kSomeRows : kManyRows;
}

Scorer::Scorer(const PackedQueries& queries, const Searched& searched, const Kernels& kernels)
    : queries_(queries),
      searched_(searched),
      kernels_(kernels),
      panels_(kernels.panels_of(searched.rows.type)),
      most_queries_(searched.rows.type == DataType::int8 ? kernels.tile_queries_int8
                                                         : kernels.tile_queries),
      block_rows_(block_rows(queries, panels_)),
      crowded_(block_rows_ > kFilterRows &&
               searched.rows.stride * item_size(searched.rows.type) % kPage == 0),
      wide_stride_(queries.chunks().size + 16),
      sums_(queries.count() * block_rows_) {
    const int wide_rows = panels_ != nullptr ? 0 : block_rows_;
    const size_t bytes = wide_rows * wide_stride_ * sizeof(float) + kCacheLine;
    memory_ = std::make_unique<char[]>(bytes);
    void* address = memory_.get();
    size_t space = bytes;
    wide_ = static_cast<float*>(std::align(kCacheLine, 1, address, space));
}

void Scorer::score(const RowBlock& block, const RowBlock& next, TopList* lists) {
    if (block.count <= 0) return;
    special_.clear();
    for (int j = 0; j < block_rows_; ++j) {
        float inverse = std::numeric_limits<float>::quiet_NaN();
        if (j < block.count) {
            const int64_t row = block.rows[j];
            inverse = searched_.inverse_norms != nullptr
                          ? searched_.inverse_norms[row]
                          : inverse_norm(searched_.rows, row, kernels_);
            if (!(inverse >= 0)) {
                special_.push_back(j);
                inverse = std::numeric_limits<float>::quiet_NaN();
            }
        }
        inverse_norms_[j] = inverse;
    }
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    multiply(block, next);
    for (int64_t i = 0; i < queries_.count(); ++i) {
        offer(block, i, sums_.data() + i * block_rows_, lists[i]);
    }
}

void Scorer::multiply(const RowBlock& block, const RowBlock& next) {
    if (panels_ != nullptr) {
        multiply_panels(block, next);
        return;
    }
    const Chunks& chunks = queries_.chunks();
    const int64_t item = item_size(searched_.rows.type);
    const int rows = static_cast<int>(div_up(block.count, kTileRows) * kTileRows);
    const char* addresses[kManyRows];
    const char* ahead[kManyRows];
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
        const bool is_last = chunk + 1 == chunks.count;
        const RowBlock& following = is_last && next.count > 0 ? next : block;
        const int64_t following_column = is_last ? 0 : chunks.begin(chunk + 1);
        for (int j = 0; j < rows; ++j) {
            const int64_t row = block.rows[std::min(j, block.count - 1)];
            const int64_t row_ahead = following.rows[std::min(j, following.count - 1)];
            addresses[j] = searched_.rows.row(row) + chunks.begin(chunk) * item;
            ahead[j] = searched_.rows.row(row_ahead) + following_column * item;
        }
        multiply_tiles(chunk, rows, addresses, ahead);
    }
}

/// All queries go through a panel of rows, while the next panel is brought towards the cache.
void Scorer::multiply_panels(const RowBlock& block, const RowBlock& next) {
    const Chunks& chunks = queries_.chunks();
    const auto find = [&](const RowBlock& from, int first, int64_t chunk, const char** to) {
        for (int j = 0; j < kPanelRows; ++j) {
            const int64_t row = from.rows[std::min(first + j, from.count - 1)];
            to[j] = searched_.rows.row(row) + chunks.begin(chunk) * item_size(searched_.rows.type);
        }
    };
    const char *addresses[kPanelRows], *ahead[kPanelRows];
    Panel panel{};
    panel.group_stride = kPanelQueries * queries_.stride();
    panel.query_count = static_cast<int>(queries_.count());
    panel.rows = addresses;
    panel.ahead = ahead;
    panel.sums_stride = block_rows_;
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
        panel.queries = queries_.chunk(chunk);
        panel.columns = chunks.length(chunk);
        for (int first = 0; first < block.count; first += kPanelRows) {
            const int count = std::min(kPanelRows, block.count - first);
            find(block, first, chunk, addresses);
            if (first + count < block.count) {
                find(block, first + count, chunk, ahead);
            } else if (chunk + 1 < chunks.count) {
                find(block, 0, chunk + 1, ahead);
            } else {
                find(next.count > 0 ? next : block, 0, 0, ahead);
            }
            panel.row_count = static_cast<int>(div_up(count, kPanelRowsUnit) * kPanelRowsUnit);
            panel.sums = sums_.data() + first;
            panels_->multiply(panel);
        }
    }
}

void Scorer::multiply_tiles(int64_t chunk, int rows, const char* const* addresses,
                            const char* const* ahead) {
    const int64_t count = queries_.count(), tiles = div_up(count, most_queries_);
    const bool is_int8 = searched_.rows.type == DataType::int8;
    const TileKernel kernel = first_kernel(tiles > 1);
    const bool copies = is_int8 && tiles > 1 && crowded_;
    const bool widens = kernel != kernels_.float32 && !is_int8;
    Tile tile{};
    tile.query_stride = queries_.stride();
    tile.columns = queries_.chunks().length(chunk);
    tile.sums_stride = block_rows_;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t begin = count * t / tiles, end = count * (t + 1) / tiles;
        const bool reads_copy = copies || (widens && t > 0);
        tile.queries = queries_.chunk(chunk) + begin * queries_.stride();
        tile.query_count = static_cast<int>(end - begin);
        // Each tile of queries brings its share of the four rows that come next.
        const char* nothing = tile.queries;  // is in the cache
        const int64_t share = kTileRows * t / tiles, share_end = kTileRows * (t + 1) / tiles;
        for (int j = 0; j < rows; j += kTileRows) {
            tile.sums = sums_.data() + begin * block_rows_ + j;
            for (int r = 0; r < kTileRows; ++r) {
                // Rows that are used once need no place of their own.
                tile.wide[r] = wide_ + (tiles > 1 ? j + r : r) * wide_stride_;
                if (copies && t == 0) std::memcpy(tile.wide[r], addresses[j + r], tile.columns);
                tile.rows[r] =
                    reads_copy ? reinterpret_cast<const char*>(tile.wide[r]) : addresses[j + r];
                tile.ahead[r] = share + r < share_end ? ahead[j + share + r] : nothing;
            }
            (widens && t > 0 ? kernels_.float32 : kernel)(tile);
        }
    }
}

/// What reads rows the first time. Several tiles of queries had better read float32 in whole cache
/// lines that do not crowd each other out: other rows are widened, or just copied, on the way.
TileKernel Scorer::first_kernel(bool several_tiles) const {
    const DataType type = searched_.rows.type;
    if (type != DataType::float32) return kernels_.reading(type);
    const int64_t bytes = searched_.rows.stride * static_cast<int64_t>(sizeof(float));
    const bool aligned = reinterpret_cast<uintptr_t>(searched_.rows.data) % kCacheLine == 0 &&
                         bytes % kCacheLine == 0;
    return several_tiles && (!aligned || crowded_) ? kernels_.widen_float32 : kernels_.float32;
}

void Scorer::offer(const RowBlock& block, int64_t query, const float* sums, TopList& list) {
    const float scale = queries_.scale(query);
    const bool is_number = !std::isnan(scale);
    for (int first = 0; is_number && first < block_rows_; first += kManyRows) {
        float scores[kManyRows];
        uint8_t found[kManyRows];
        const int passed = kernels_.filter(sums + first, scale, inverse_norms_ + first,
                                           std::min(kManyRows, block_rows_ - first),
                                           list.threshold(), scores, found);
        for (int i = 0; i < passed; ++i) {
            const int j = found[i];
            list.offer({std::min(1.0f, std::max(-1.0f, scores[j])), block.rows[first + j]});
        }
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (!is_number) {
        for (int j = 0; j < block.count; ++j) list.offer({nan, block.rows[j]});
        return;
    }
    for (const int j : special_) {
        const int64_t row = block.rows[j];
        const float inverse = searched_.inverse_norms != nullptr
                                  ? searched_.inverse_norms[row]
                                  : inverse_norm(searched_.rows, row, kernels_);
        list.offer({inverse == kExtreme ? queries_.cosine(query, searched_.rows, row) : nan, row});
    }
}

}  // namespace clara
