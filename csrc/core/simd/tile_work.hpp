#pragma once

#include <cstdint>

namespace clara {

constexpr int kTileRows = 4;        // rows that a tile kernel takes at a time
constexpr int64_t kCacheLine = 64;  // bytes

/// Work for a tile kernel: sums[i * sums_stride + j] += ⟨query i, row j⟩ over `columns` columns.
struct Tile {
    const char* queries;  // packed, query_stride bytes apart
    int64_t query_stride;
    int query_count;
    const char* rows[kTileRows];  // of fewer rows, one is repeated; exactly `columns` are read
    int64_t columns;
    float* sums;
    int64_t sums_stride;
    char* copies[kTileRows];  // where kernels that convert rows write them, padded with 0
    // From these on lines are brought towards the cache, one of each for every vector of columns;
    // from the last two only by kernels of few queries, which wait for memory most of the time.
    const char* ahead[kTileRows];
};

using TileKernel = void (*)(const Tile& tile);

}  // namespace clara
