#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/packed_queries.hpp"
#include "core/rows.hpp"
#include "core/simd/kernels.hpp"
#include "core/top_list.hpp"

namespace clara {

/// Rows to search, and what is known of them.
struct Searched {
    Rows rows;
    const float* inverse_norms;  // as `inverse_norm` returns them; null has them computed
};

/// Some rows that are scored together.
struct RowBlock {
    static constexpr int kMost = 512;
    int count = 0;
    int64_t rows[kMost];
};

/// Scores blocks of rows for packed queries and offers the scores to lists, one for each query. Of
/// one thread.
class Scorer {
public:
    Scorer(const PackedQueries& queries, const Searched& searched, const Kernels& kernels);

    /// How many rows a block had best hold; a multiple of kFilterRows.
    int block_rows() const { return block_rows_; }
    static int block_rows(const PackedQueries& queries, const PanelKernels* panels);

    /// Whether rows had best follow each other in a block as they do in memory.
    bool in_order() const { return panels_ != nullptr; }

    /// Scores `block` for all queries, whose lists begin at `lists`. Meanwhile the rows of `next`
    /// are brought towards the cache.
    void score(const RowBlock& block, const RowBlock& next, TopList* lists);

private:
    void multiply(const RowBlock& block, const RowBlock& next);
    void multiply_tiles(int64_t chunk, int rows, const char* const* addresses,
                        const char* const* ahead);
    void multiply_panels(const RowBlock& block, const RowBlock& next);
    TileKernel first_kernel(bool several_tiles) const;
    void offer(const RowBlock& block, int64_t query, const float* sums, TopList& list);

    const PackedQueries& queries_;
    const Searched& searched_;
    const Kernels& kernels_;
    const PanelKernels* panels_;  // that multiply these rows, or null
    int most_queries_;            // in a tile
    int block_rows_;
    bool crowded_;  // a chunk of the block's rows falls into few sets of a cache
    int64_t wide_stride_;
    std::unique_ptr<char[]> memory_;
    float* wide_;              // [block_rows_, wide_stride_]: a chunk of the rows as float32
    std::vector<float> sums_;  // [queries, block_rows_]
    alignas(64) float inverse_norms_[RowBlock::kMost];  // NaN for rows that `special_` lists
    std::vector<int> special_;                          // rows without an ordinary norm
};

}  // namespace clara
