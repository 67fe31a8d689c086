#pragma once

#include "cuda/few_queries.cuh"

namespace clara {

// Many queries: blocks multiply tiles of queries by tiles of rows, whose columns go through shared
// memory 64 bytes at a time, several such slices ahead. The tile of scores stays in registers,
// where it is compared with each query's threshold. What passes waits in the workspace until the
// tile is done; then one thread for each query puts it into the block's list for that query. Blocks
// keep their queries and go from one tile of rows to the next.

struct ManyArguments {
    DeviceRows corpus;
    DeviceRows queries;  // as they came, of all groups
    int64_t first_query;
    int64_t query_count;  // of this launch
    const float* inverse_norms;
    const uint8_t* mask;  // may be null
    Prepared prepared;
    Lists lists;       // count: blocks that share a tile of queries
    Key* shared_best;  // [B, k]: some of the best keys of all blocks, null where k is large
    Key* waiting;      // [blocks, tile rows, tile queries]
    int query_tiles;
};

struct ManyPlan {
    bool few_rows;  // tiles of 64 rows rather than 128
    int tile_queries;
    int tile_rows;
    size_t shared;
};

/// For `columns` of the corpus, which float32 and int8 need to know.
ManyPlan plan_many(DataType type, int64_t columns, int k, bool few_rows, bool lists_in_shared);

/// Blocks of this plan that the current device runs at a time.
int64_t many_blocks(DataType type, const ManyPlan& plan);

void search_many(const ManyArguments& arguments, const ManyPlan& plan, cudaStream_t stream);

/// Whether the current device, and what was compiled for it, has tensor cores that these need.
bool has_tensor_cores();

}  // namespace clara
