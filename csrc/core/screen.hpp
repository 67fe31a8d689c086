#pragma once

#include <cstdint>
#include <vector>

#include "core/packed_queries.hpp"
#include "core/row_block.hpp"
#include "core/simd/kernels.hpp"
#include "core/top_list.hpp"
#include "core/zeroed_memory.hpp"

namespace clara {

/// Packed queries rounded to bfloat16, in groups of kScreenQueries, and how far that may move a
/// score.
class RoundedQueries {
public:
    RoundedQueries(const PackedQueries& queries, const ScreenKernels& kernels, int threads);

    /// Whether a screen saves time in a search of so many rows, by `threads`, for k of them.
    static bool useful(const PackedQueries& queries, const Rows& rows, int64_t k, int threads,
                       const Kernels& kernels);

    const Chunks& chunks() const { return chunks_; }
    int64_t groups() const { return groups_; }

    /// Groups that are multiplied together: of `tile`, [first_group(tile), first_group(tile + 1)).
    int64_t tiles() const { return tiles_; }
    int64_t first_group(int64_t tile) const { return groups_ * tile / tiles_; }
    const char* tile(int64_t chunk, int64_t tile) const {
        return data_ + (chunk * groups_ + first_group(tile)) * stride_;
    }

    /// The most that a score of query `i` may differ because of the query and of sums in float32.
    float margin(int64_t i) const { return margins_[i]; }

private:
    void pack(const PackedQueries& queries, int64_t i, const ScreenKernels& kernels);

    int64_t groups_, tiles_;
    Chunks chunks_;
    int64_t stride_;  // bytes for a chunk of a group
    ZeroedMemory memory_;
    char* data_;
    std::vector<float> margins_;
};

/// Finds the rows that may be among the best of a search from products of rounded values, and
/// computes the scores of these alone, to the same bits as a product of all. Of one thread.
///
/// A product tells a score but for a margin. A row cannot be among the best k if k others are above
/// it by two margins, so such rows are dropped at once. What is left in the end is few, unless very
/// many rows are nearly as good as the best: then the screen gives up for some time.
class Screen {
public:
    /// Of `queries`, which are `rounded`, for `k` rows each.
    Screen(const PackedQueries& queries, const RoundedQueries& rounded, const Searched& searched,
           const Kernels& kernels, int64_t k);

    static constexpr int kBlockRows = 8 * kScreenRows;  // of a block

    /// Keeps the rows of the block that may be among the best, but for those with inverse norms of
    /// NaN. False where it does not, and they are to be offered to the lists otherwise. Meanwhile
    /// the rows of `next` are brought towards the cache.
    bool take(const RowBlock& block, const RowBlock& next, const float* inverse_norms,
              TopList* lists);

    /// Offers to the lists, one for each query, what was kept.
    void finish(TopList* lists);

private:
    struct Kept {
        float score;  // of rounded values
        float inverse_norm;
        int64_t row;
    };

    void multiply(const RowBlock& block, const RowBlock& next, const float* inverse_norms);
    void multiply_rows(int64_t chunk, const char* rows, int64_t row_stride, float* sums);
    bool in_place(const RowBlock& block, int first, int64_t chunk) const;
    void look_ahead(const RowBlock& block, int first, int64_t chunk);
    void copy_rows(const RowBlock& block, int first, int count, int64_t chunk, double* changed);
    void found_margin(const RowBlock& block, const float* inverse_norms, const double* changed);
    void keep(const RowBlock& block, const float* inverse_norms, TopList* lists);
    void drop(int64_t query, const TopList& list);
    void set_floor(int64_t query, const TopList& list);
    void score(int64_t query, TopList& list);

    const PackedQueries& queries_;
    const RoundedQueries& rounded_;
    const Searched& searched_;
    const ScreenKernels& kernels_;
    int64_t k_, most_kept_;
    bool rounds_rows_;
    float row_margin_ = 0;  // the most that rounding of a row seen so far may move a score
    int64_t padded_;        // queries of whole groups
    int64_t row_stride_;
    ZeroedMemory copied_;
    char* copies_;                         // [kScreenRows, row_stride]: a chunk of rows
    std::vector<float> sums_;              // [kBlockRows, padded]
    std::vector<float> floors_;            // below which a product is of no use
    std::vector<float> best_;              // the lowest of k scores of rounded values
    std::vector<std::vector<Kept>> kept_;  // of each query
    std::vector<uint16_t> found_;
    std::vector<const char*> ahead_;  // lines of the rows that come next
    double credit_;                   // of work that may be done beyond products
    int pause_ = 1, paused_ = 0;      // blocks to leave out the next time, and now
};

}  // namespace clara
