#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/packed_queries.hpp"
#include "core/row_block.hpp"
#include "core/screen.hpp"
#include "core/simd/kernels.hpp"
#include "core/tile_multiplier.hpp"
#include "core/top_list.hpp"

namespace clara {

/// Scores blocks of rows for packed queries and offers the scores to lists, one for each query. Of
/// one thread.
class Scorer {
public:
    Scorer(const PackedQueries& queries, const Searched& searched, const Kernels& kernels);

    /// With a screen of the same queries, for `k` rows each; or without, if `rounded` is null.
    Scorer(const PackedQueries& queries, const RoundedQueries* rounded, const Searched& searched,
           const Kernels& kernels, int64_t k);

    /// How many rows a block had best hold; a multiple of kFilterRows.
    int block_rows() const { return block_rows_; }
    static int block_rows(const PackedQueries& queries, const RoundedQueries* rounded,
                          const PanelKernels* panels);

    /// Whether rows had best follow each other in a block as they do in memory.
    bool in_order() const { return panels_ != nullptr || screen_; }

    /// Scores `block` for all queries, whose lists begin at `lists`. Meanwhile the rows of `next`
    /// are brought towards the cache.
    void score(const RowBlock& block, const RowBlock& next, TopList* lists);

    /// Offers what is left to be offered, after the last block.
    void finish(TopList* lists);

private:
    void multiply(const RowBlock& block, const RowBlock& next);
    void multiply_panels(const RowBlock& block, const RowBlock& next);
    TileWay way() const;
    void offer(const RowBlock& block, int64_t query, const float* sums, TopList& list);
    void offer_apart(const RowBlock& block, int64_t query, TopList& list);

    const PackedQueries& queries_;
    const Searched& searched_;
    const Kernels& kernels_;
    const PanelKernels* panels_;  // that multiply these rows, or null
    int block_rows_;
    std::optional<TileMultiplier> tiles_;  // where panels do not multiply
    std::optional<Screen> screen_;
    std::vector<float> sums_;                           // [queries, block_rows_]
    alignas(64) float inverse_norms_[RowBlock::kMost];  // NaN for rows that `special_` lists
    std::vector<int> special_;                          // rows without an ordinary norm
};

}  // namespace clara
