#pragma once

#include "cuda/prepare.cuh"

namespace clara {

// Few queries: every byte of the corpus is read once and little is done with it. 8 lanes take 128
// bytes of a row at a time, a warp 16 rows (8 for int8 with 8 queries), loading the next 128 bytes
// while it multiplies. Queries lie in shared memory: all of them, or, where rows are long, two
// chunks of columns in turn. Scores that pass go to the warp's own lists.

/// A list of k keys for each query and block, or warp, in the workspace: [B, lists, k].
struct Lists {
    Key* keys;
    Key* thresholds;  // [B]: the highest k-th best key of any list
    int64_t count;    // lists of each query
    int k;
    bool in_shared;  // kept in shared memory until the end
};

struct FewArguments {
    DeviceRows corpus;
    DeviceRows queries;  // as they came, of all groups
    int64_t first_query;
    int64_t query_count;  // of this launch
    const float* inverse_norms;
    const uint8_t* mask;     // may be null
    const int64_t* listed;   // candidates, may be null
    const int32_t* offsets;  // null: every query searches all rows
    int64_t candidates;
    Prepared prepared;
    Lists lists;
    int chunk_columns;  // of queries that lie in shared memory at a time
    bool chunked;       // there is more than one chunk
};

struct FewPlan {
    int most_queries;  // of a block: 1, 4 or 8
    int threads;
    int chunk_columns;
    bool chunked;
    size_t shared;
    int64_t lists_per_block;  // of each query
    int64_t block_rows;
};

/// How `queries_per_block` (1, 4 or 8) queries are searched for; `columns` are padded.
FewPlan plan_few(DataType type, int most_queries, int64_t columns, int k, bool lists_in_shared);

/// Blocks of this plan that the current device runs at a time.
int64_t few_blocks(DataType type, const FewPlan& plan);

/// Searches with `blocks` blocks for each group of plan.most_queries queries.
void search_few(const FewArguments& arguments, const FewPlan& plan, int64_t blocks,
                cudaStream_t stream);

}  // namespace clara
