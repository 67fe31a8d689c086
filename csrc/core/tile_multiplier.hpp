#pragma once

#include <cstdint>

#include "core/packed_queries.hpp"
#include "core/row_block.hpp"
#include "core/rows.hpp"
#include "core/simd/kernels.hpp"
#include "core/zeroed_memory.hpp"

namespace clara {

/// How tile kernels go through the rows of a block for one tile of queries after another.
struct TileWay {
    TileKernel first;   // for the first tile of queries
    TileKernel others;  // for the others, which read what the first one wrote if it writes
    int most_queries;   // in a tile
    bool writes;        // whether `first` writes Tile::copies
    bool copies;        // whether rows are copied as they are before the first tile reads them
};

/// Multiplies blocks of rows by packed queries, tile by tile. Of one thread.
class TileMultiplier {
public:
    /// `copy_bytes` is the size of a value of Tile::copies.
    TileMultiplier(const QueryLayout& queries, const Rows& rows, const TileWay& way, int block_rows,
                   int64_t copy_bytes);

    /// Adds products to `sums`, [queries, block_rows]. Meanwhile the rows of `next` are brought
    /// towards the cache.
    void multiply(const RowBlock& block, const RowBlock& next, float* sums);

private:
    void multiply_chunk(int64_t chunk, int rows, const char* const* addresses,
                        const char* const* ahead, float* sums);

    QueryLayout queries_;
    Rows rows_;
    TileWay way_;
    int block_rows_;
    int64_t copy_stride_;
    ZeroedMemory memory_;
    char* copies_;  // [block_rows, copy_stride]: a chunk of the rows as kernels write them
};

}  // namespace clara
