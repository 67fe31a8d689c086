#include "core/tile_multiplier.hpp"

#include <algorithm>
#include <cstring>

#include "core/round_up.hpp"

namespace clara {

TileMultiplier::TileMultiplier(const QueryLayout& queries, const Rows& rows, const TileWay& way,
                               int block_rows, int64_t copy_bytes)
    : queries_(queries),
      rows_(rows),
      way_(way),
      block_rows_(block_rows),
      // Not a power of two: such rows would share cache sets.
      copy_stride_(queries.chunks.size * copy_bytes + kCacheLine),
      memory_(block_rows * copy_stride_),
      copies_(memory_.data()) {}

void TileMultiplier::multiply(const RowBlock& block, const RowBlock& next, float* sums) {
    if (block.count <= 0) return;
    const Chunks& chunks = queries_.chunks;
    const int64_t item = item_size(rows_.type);
    const int rows = static_cast<int>(round_up(block.count, kTileRows));
    const char* addresses[RowBlock::kMost];
    const char* ahead[RowBlock::kMost];
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
        const bool is_last = chunk + 1 == chunks.count;
        const RowBlock& following = is_last && next.count > 0 ? next : block;
        const int64_t following_column = is_last ? 0 : chunks.begin(chunk + 1);
        for (int j = 0; j < rows; ++j) {
            const int64_t row = block.rows[std::min(j, block.count - 1)];
            const int64_t row_ahead = following.rows[std::min(j, following.count - 1)];
            addresses[j] = rows_.row(row) + chunks.begin(chunk) * item;
            ahead[j] = rows_.row(row_ahead) + following_column * item;
        }
        multiply_chunk(chunk, rows, addresses, ahead, sums);
    }
}

void TileMultiplier::multiply_chunk(int64_t chunk, int rows, const char* const* addresses,
                                    const char* const* ahead, float* sums) {
    const int64_t count = queries_.count, tiles = div_up(count, way_.most_queries);
    const bool copies = way_.copies && tiles > 1;
    Tile tile{};
    tile.query_stride = queries_.stride;
    tile.columns = queries_.chunks.length(chunk);
    tile.sums_stride = block_rows_;
    const int64_t copied_bytes = tile.columns * item_size(rows_.type);
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t begin = count * t / tiles, end = count * (t + 1) / tiles;
        const bool reads_copy = copies || (way_.writes && t > 0);
        tile.queries = queries_.chunk(chunk) + begin * queries_.stride;
        tile.query_count = static_cast<int>(end - begin);
        // Each tile of queries brings its share of the four rows that come next.
        const char* nothing = tile.queries;  // is in the cache
        const int64_t share = kTileRows * t / tiles, share_end = kTileRows * (t + 1) / tiles;
        for (int j = 0; j < rows; j += kTileRows) {
            tile.sums = sums + begin * block_rows_ + j;
            for (int r = 0; r < kTileRows; ++r) {
                // Rows that are used once need no place of their own.
                tile.copies[r] = copies_ + (tiles > 1 ? j + r : r) * copy_stride_;
                if (copies && t == 0) std::memcpy(tile.copies[r], addresses[j + r], copied_bytes);
                tile.rows[r] = reads_copy ? tile.copies[r] : addresses[j + r];
                tile.ahead[r] = share + r < share_end ? ahead[j + share + r] : nothing;
            }
            (t > 0 ? way_.others : way_.first)(tile);
        }
    }
}

}  // namespace clara
