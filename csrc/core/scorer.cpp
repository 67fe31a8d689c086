#include "core/scorer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/inverse_norms.hpp"
#include "core/round_up.hpp"

namespace clara {
namespace {

constexpr int kSomeRows = 64, kManyRows = 128;  // of a block
constexpr int64_t kFewQueries = 24;             // which wait for memory more than they multiply
constexpr int64_t kSecondLevelCache = 1 << 20;  // bytes of it that queries may take
constexpr int64_t kPage = 4096;                 // what the sets of a cache repeat after, or a part

}  // namespace

/// The more queries, the more rows are worth keeping in the second-level cache while the queries of
/// a tile, once read, stay in the first: above all where not all queries fit there as well. Panels
/// read queries so fast that these had better come from further away for very many rows only.
int Scorer::block_rows(const PackedQueries& queries, const RoundedQueries* rounded,
                       const PanelKernels* panels) {
    if (rounded != nullptr) return Screen::kBlockRows;
    const int64_t bytes = queries.count() * queries.chunks().count * queries.stride();
    const bool fits = bytes <= kSecondLevelCache, few = queries.count() <= kFewQueries;
    if (panels != nullptr) return !fits ? RowBlock::kMost : few ? kSomeRows : kManyRows;
    return few ? kFilterRows : fits ? kSomeRows : kManyRows;
}

Scorer::Scorer(const PackedQueries& queries, const Searched& searched, const Kernels& kernels)
    : Scorer(queries, nullptr, searched, kernels, 0) {}

Scorer::Scorer(const PackedQueries& queries, const RoundedQueries* rounded,
               const Searched& searched, const Kernels& kernels, int64_t k)
    : queries_(queries),
      searched_(searched),
      kernels_(kernels),
      panels_(kernels.panels_of(searched.rows.type)),
      block_rows_(block_rows(queries, rounded, panels_)),
      sums_(queries.count() * block_rows_) {
    if (panels_ != nullptr) return;
    const int64_t copied = searched.rows.type == DataType::int8 ? 1 : sizeof(float);
    tiles_.emplace(queries.layout(), searched.rows, way(), block_rows_, copied);
    if (rounded != nullptr) screen_.emplace(queries, *rounded, searched, kernels, k);
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
    if (screen_ && screen_->take(block, next, inverse_norms_, lists)) {
        for (int64_t i = 0; i < queries_.count(); ++i) offer_apart(block, i, lists[i]);
        return;
    }
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    multiply(block, next);
    for (int64_t i = 0; i < queries_.count(); ++i) {
        offer(block, i, sums_.data() + i * block_rows_, lists[i]);
    }
}

void Scorer::finish(TopList* lists) {
    if (screen_) screen_->finish(lists);
}

void Scorer::multiply(const RowBlock& block, const RowBlock& next) {
    if (tiles_) {
        tiles_->multiply(block, next, sums_.data());
    } else {
        multiply_panels(block, next);
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
            panel.row_count = static_cast<int>(round_up(count, kPanelRowsUnit));
            panel.sums = sums_.data() + first;
            panels_->multiply(panel);
        }
    }
}

/// Several tiles of queries had better read float32 in whole cache lines that do not crowd each
/// other out: other rows are widened, or just copied, on the way.
TileWay Scorer::way() const {
    const Rows& rows = searched_.rows;
    const int64_t bytes = rows.stride * item_size(rows.type);
    const bool crowded = block_rows_ > kFilterRows && bytes % kPage == 0;
    if (rows.type == DataType::int8) {
        return {kernels_.int8, kernels_.int8, kernels_.tile_queries_int8, false, crowded};
    }
    const bool several = queries_.count() > kernels_.tile_queries;
    const bool aligned =
        reinterpret_cast<uintptr_t>(rows.data) % kCacheLine == 0 && bytes % kCacheLine == 0;
    TileKernel first = kernels_.reading(rows.type);
    if (rows.type == DataType::float32 && several && (!aligned || crowded)) {
        first = kernels_.widen_float32;
    }
    return {first, kernels_.float32, kernels_.tile_queries, first != kernels_.float32, false};
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
    offer_apart(block, query, list);
}

/// What has no ordinary score: all rows if the query is not finite, else rows without a norm.
void Scorer::offer_apart(const RowBlock& block, int64_t query, TopList& list) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (std::isnan(queries_.scale(query))) {
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
