#include "core/screen.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/parallel.hpp"
#include "core/round_up.hpp"

namespace clara {
namespace {

constexpr int64_t kLeastQueries = 12;         // fewer wait for memory in any case
constexpr int64_t kLeastQueriesRounded = 32;  // where rows have to be rounded
constexpr int64_t kRowsForOne = 64;           // that are searched for each of the best
constexpr int64_t kKeptBeside = 128;          // rows kept beside twice those that are wanted
constexpr double kShare = 0.125;    // of all rows of a block, that may be kept without loss
constexpr double kTimesKept = 8;    // as long as keeping a row does scoring it take
constexpr int kLongestPause = 128;  // blocks
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// How far rounding to 8 bits moves any vector, by its norm, and the step in which that is counted.
constexpr float kRoundingOfRow = 0x1.02p-8f, kStepOfMargin = 0x1p-13f;
constexpr double kSafety = 1.001;  // for what is itself computed in float32

constexpr int64_t kItem = 2, kPairBytes = 2 * kItem;  // bytes of bfloat16 values

}  // namespace

bool RoundedQueries::useful(const PackedQueries& queries, const Rows& rows, int64_t k, int threads,
                            const Kernels& kernels) {
    if (kernels.screen == nullptr || rows.type == DataType::int8) return false;
    const int64_t least = rows.type == DataType::bfloat16 ? kLeastQueries : kLeastQueriesRounded;
    return queries.count() >= least && rows.count / threads / kRowsForOne >= k;
}

RoundedQueries::RoundedQueries(const PackedQueries& queries, const ScreenKernels& kernels,
                               int threads)
    : groups_(div_up(queries.count(), kScreenQueries)),
      tiles_(div_up(groups_, kScreenGroups)),
      // One group goes through so many rows at a time that these had better be shorter.
      chunks_(queries.chunks().columns, groups_ == 1 ? DataType::bfloat16 : DataType::int8),
      stride_((chunks_.size + 1) / 2 * kPairBytes * kScreenQueries),
      memory_(chunks_.count * groups_ * stride_),
      data_(memory_.data()),
      margins_(queries.count()) {
    const double elements = static_cast<double>(queries.count()) * chunks_.columns;
    for_each_part(queries.count(), useful_threads(elements, queries.count(), threads),
                  [&](int, int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i) pack(queries, i, kernels);
                  });
}

/// With a query u of norm 1 that is rounded to v, and a row c to d,
/// |⟨u, c⟩ - ⟨v, d⟩| ≤ |u - v| |c| + |v| |c - d|, of which the first is the query's margin by |c|.
/// Sums in float32, here and of the score, add at most a rounding of the whole for each step: here
/// of a column, as a lane has one query. Values below the normal numbers may count as zero, which
/// is nothing beside norms of at least 2⁻⁸⁰.
void RoundedQueries::pack(const PackedQueries& queries, int64_t i, const ScreenKernels& kernels) {
    const QueryLayout& layout = queries.layout();
    const int64_t group = i / kScreenQueries;
    int64_t t = 0;
    while (first_group(t + 1) <= group) ++t;
    const int64_t step = (first_group(t + 1) - first_group(t)) * kScreenQueries * kPairBytes;
    std::vector<uint16_t> rounded(chunks_.columns + 1);
    double changed = 0;
    for (int64_t c = 0; c < layout.chunks.count; ++c) {
        uint16_t& first = rounded[layout.chunks.begin(c)];
        const char* values = layout.chunk(c) + i * layout.stride;
        changed +=
            kernels.round[0](values, layout.chunks.length(c), reinterpret_cast<char*>(&first));
    }
    const int64_t place = i - first_group(t) * kScreenQueries;
    for (int64_t c = 0; c < chunks_.count; ++c) {
        char* out = data_ + (c * groups_ + first_group(t)) * stride_ + place * kPairBytes;
        const int64_t begin = chunks_.begin(c), end = begin + chunks_.length(c);
        for (int64_t j = begin; j < end; j += 2, out += step) {
            std::memcpy(out, &rounded[j], kPairBytes);
        }
    }
    const double of_sums = (static_cast<double>(chunks_.columns) / 128 + 2400) * 0x1p-24;
    margins_[i] = static_cast<float>((std::sqrt(changed) + of_sums) * kSafety);
}

Screen::Screen(const PackedQueries& queries, const RoundedQueries& rounded,
               const Searched& searched, const Kernels& kernels, int64_t k)
    : queries_(queries),
      rounded_(rounded),
      searched_(searched),
      kernels_(*kernels.screen),
      k_(k),
      most_kept_(2 * k + kKeptBeside),
      rounds_rows_(searched.rows.type != DataType::bfloat16),
      padded_(rounded.groups() * kScreenQueries),
      row_stride_(round_up(kItem * rounded.chunks().size, kCacheLine) + kCacheLine),
      copied_(kScreenRows * row_stride_),
      copies_(copied_.data()),
      sums_(kBlockRows * padded_),
      floors_(padded_, kInfinity),
      best_(queries.count(), -kInfinity),
      kept_(queries.count()),
      found_(padded_),
      credit_(static_cast<double>(2 * most_kept_ * queries.count())) {
    for (int64_t i = 0; i < queries.count(); ++i) {
        if (!std::isnan(queries.scale(i))) floors_[i] = -kInfinity;
        kept_[i].reserve(most_kept_);
    }
}

bool Screen::take(const RowBlock& block, const RowBlock& next, const float* inverse_norms,
                  TopList* lists) {
    if (paused_ > 0) {
        --paused_;
        return false;
    }
    multiply(block, next, inverse_norms);
    keep(block, inverse_norms, lists);
    if (credit_ < 0) {
        paused_ = pause_;
        pause_ = std::min(2 * pause_, kLongestPause);
        credit_ = 0;
    }
    return true;
}

void Screen::multiply(const RowBlock& block, const RowBlock& next, const float* inverse_norms) {
    const Chunks& chunks = rounded_.chunks();
    double changed[kBlockRows] = {};
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    for (int64_t c = 0; c < chunks.count; ++c) {
        for (int first = 0; first < block.count; first += kScreenRows) {
            if (first + kScreenRows < block.count) {
                look_ahead(block, first + kScreenRows, c);
            } else if (c + 1 < chunks.count) {
                look_ahead(block, 0, c + 1);
            } else {
                look_ahead(next, 0, 0);
            }
            float* sums = sums_.data() + first * padded_;
            if (in_place(block, first, c)) {
                const Rows& rows = searched_.rows;
                const char* from = rows.row(block.rows[first]) + chunks.begin(c) * kItem;
                multiply_rows(c, from, rows.stride * kItem, sums);
                continue;
            }
            copy_rows(block, first, std::min(kScreenRows, block.count - first), c, changed);
            multiply_rows(c, copies_, row_stride_, sums);
        }
    }
    if (rounds_rows_) found_margin(block, inverse_norms, changed);
}

/// Whether rows can be read where they lie: they are evenly apart, end with a whole pair of
/// columns, and are read few at a time, which do not crowd a cache.
bool Screen::in_place(const RowBlock& block, int first, int64_t chunk) const {
    if (rounds_rows_ || rounded_.groups() == 1) return false;
    if (rounded_.chunks().length(chunk) % 2 != 0 || first + kScreenRows > block.count) return false;
    return block.rows[first + kScreenRows - 1] - block.rows[first] == kScreenRows - 1;
}

/// A chunk of all queries by some rows.
void Screen::multiply_rows(int64_t chunk, const char* rows, int64_t row_stride, float* sums) {
    const int64_t tiles = rounded_.tiles();
    const auto lines = static_cast<int64_t>(ahead_.size());
    ScreenTile tile{};
    tile.rows = rows;
    tile.row_stride = row_stride;
    tile.steps = (rounded_.chunks().length(chunk) + 1) / 2;
    tile.sums_stride = padded_;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t first = rounded_.first_group(t);
        tile.queries = rounded_.tile(chunk, t);
        tile.groups = static_cast<int>(rounded_.first_group(t + 1) - first);
        tile.sums = sums + first * kScreenQueries;
        tile.ahead = ahead_.data() + lines * t / tiles;
        tile.ahead_count = lines * (t + 1) / tiles - lines * t / tiles;
        kernels_.multiply(tile);
    }
}

/// Lists the lines of a chunk of some rows.
void Screen::look_ahead(const RowBlock& block, int first, int64_t chunk) {
    const int64_t item = item_size(searched_.rows.type);
    const int64_t begin = rounded_.chunks().begin(chunk) * item;
    const int64_t bytes = rounded_.chunks().length(chunk) * item;
    ahead_.clear();
    for (int j = first; j < std::min(first + kScreenRows, block.count); ++j) {
        const char* row = searched_.rows.row(block.rows[j]) + begin;
        for (int64_t byte = 0; byte < bytes; byte += kCacheLine) ahead_.push_back(row + byte);
    }
}

/// A chunk of some rows as bfloat16, padded to whole pairs, apart from what crowds a cache.
void Screen::copy_rows(const RowBlock& block, int first, int count, int64_t chunk,
                       double* changed) {
    const Rows& rows = searched_.rows;
    const auto round = kernels_.round[rows.type == DataType::float16 ? 1 : 0];
    const int64_t begin = rounded_.chunks().begin(chunk), length = rounded_.chunks().length(chunk);
    for (int j = 0; j < count; ++j) {
        const char* from = rows.row(block.rows[first + j]) + begin * item_size(rows.type);
        char* to = copies_ + j * row_stride_;
        if (rounds_rows_) {
            changed[first + j] += round(from, length, to);
        } else {
            std::memcpy(to, from, kItem * length);
        }
        if (length % 2 != 0) std::memset(to + kItem * length, 0, kItem);
    }
}

/// In steps, so that it seldom grows.
void Screen::found_margin(const RowBlock& block, const float* inverse_norms,
                          const double* changed) {
    double most = 0;
    for (int j = 0; j < block.count; ++j) {
        const double moved = std::sqrt(changed[j]) * inverse_norms[j];
        if (moved > most) most = moved;  // not where the inverse norm is NaN
    }
    const auto steps =
        std::ceil(static_cast<float>(most * kSafety * (1 + kRoundingOfRow)) / kStepOfMargin);
    row_margin_ = std::max(row_margin_, std::min(steps * kStepOfMargin, kRoundingOfRow));
}

void Screen::keep(const RowBlock& block, const float* inverse_norms, TopList* lists) {
    int64_t kept = 0;
    for (int64_t i = 0; i < queries_.count(); ++i) set_floor(i, lists[i]);
    for (int j = 0; j < block.count; ++j) {
        const float* sums = sums_.data() + j * padded_;
        const int passed = kernels_.filter(sums, inverse_norms[j], floors_.data(),
                                           static_cast<int>(padded_), found_.data());
        kept += passed;
        for (int p = 0; p < passed; ++p) {
            const int64_t i = found_[p];
            kept_[i].push_back({sums[i] * inverse_norms[j], inverse_norms[j], block.rows[j]});
            if (static_cast<int64_t>(kept_[i].size()) < most_kept_) continue;
            drop(i, lists[i]);
            if (static_cast<int64_t>(kept_[i].size()) <= most_kept_ - kKeptBeside / 2) continue;
            credit_ -= kTimesKept * static_cast<double>(kept_[i].size());
            score(i, lists[i]);
        }
    }
    const auto most = static_cast<double>(2 * most_kept_ * queries_.count());
    const double earned = kShare * static_cast<double>(block.count * queries_.count());
    credit_ = std::min(credit_ + earned - static_cast<double>(kept), most);
}

/// Those that are kept of a query may be dropped if k of them are better by two margins, or if the
/// list has k better ones.
void Screen::set_floor(int64_t query, const TopList& list) {
    if (std::isnan(queries_.scale(query))) return;
    const float margin = rounded_.margin(query) + row_margin_;
    floors_[query] = std::max(best_[query] - 2 * margin, list.threshold() - margin);
}

void Screen::drop(int64_t query, const TopList& list) {
    std::vector<Kept>& kept = kept_[query];
    if (static_cast<int64_t>(kept.size()) < k_) return;
    const auto last = kept.begin() + (k_ - 1);
    std::nth_element(kept.begin(), last, kept.end(),
                     [](const Kept& a, const Kept& b) { return a.score > b.score; });
    best_[query] = std::max(best_[query], last->score);
    set_floor(query, list);
    const float floor = floors_[query];
    kept.erase(std::remove_if(kept.begin(), kept.end(),
                              [=](const Kept& each) { return each.score < floor; }),
               kept.end());
}

void Screen::finish(TopList* lists) {
    for (int64_t i = 0; i < queries_.count(); ++i) {
        drop(i, lists[i]);
        score(i, lists[i]);
    }
}

/// Four rows at a time, as tile kernels do.
void Screen::score(int64_t query, TopList& list) {
    const QueryLayout& layout = queries_.layout();
    const DataType type = searched_.rows.type;
    const auto exact = kernels_.exact[static_cast<int>(type)];
    std::vector<Kept>& kept = kept_[query];
    const auto count = static_cast<int64_t>(kept.size());
    for (int64_t first = 0; first < count; first += kTileRows) {
        const int64_t some = std::min<int64_t>(kTileRows, count - first);
        float sums[kTileRows] = {};
        OneQuery work{};
        work.sums = sums;
        for (int64_t c = 0; c < layout.chunks.count; ++c) {
            work.query = layout.chunk(c) + query * layout.stride;
            work.columns = layout.chunks.length(c);
            for (int64_t p = 0; p < kTileRows; ++p) {
                work.rows[p] = searched_.rows.row(kept[first + std::min(p, some - 1)].row) +
                               layout.chunks.begin(c) * item_size(type);
            }
            exact(work);
        }
        for (int64_t p = 0; p < some; ++p) {
            const Kept& each = kept[first + p];
            const float score = sums[p] * queries_.scale(query) * each.inverse_norm;
            list.offer({std::min(1.0f, std::max(-1.0f, score)), each.row});
        }
    }
    kept.clear();
}

}  // namespace clara
