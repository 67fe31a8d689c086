#include "cuda/cosine_topk.hpp"
#include "cuda/many_queries.cuh"
#include "cuda/workspace.hpp"

namespace clara {
namespace {

constexpr int64_t kFewQueries = 8;
constexpr int64_t kMostOfManyQueries = 1024;  // at a time
constexpr int64_t kMostOfFewQueries = 64;     // at a time, without tensor cores
// With fewer large tiles than so many for each multiprocessor, small ones: they fill the device
// better, but ask half as much again of the level-2 cache for each product.
constexpr int64_t kTilesEach = 2;

/// How a search is done, with `group` queries at a time.
struct Plan {
    bool many;
    FewPlan few;
    ManyPlan tiles;
    Prepared prepared;
    Lists lists;
    int64_t group;
    int64_t blocks;  // of each group of queries, or all of them
    int64_t query_tiles;
    Key* shared_best = nullptr;
    Key* waiting = nullptr;

    void take(Workspace& workspace) {
        take_common(workspace, group, prepared, lists);
        if (!many) return;
        if (lists.k <= kMostListed && lists.count > lists.k) {
            shared_best = workspace.take<Key>(group * lists.k);
        }
        waiting = workspace.take<Key>(blocks * tiles.tile_queries * tiles.tile_rows);
    }
};

void plan_few_queries(const CudaRows& queries, const CudaRows& corpus, Plan& plan) {
    const int64_t most = std::min(queries.count, kFewQueries);
    const int of_block = most == 1 ? 1 : most <= 4 ? 4 : 8;
    plan.few = plan_few_lists(corpus.type, of_block, plan.prepared, plan.lists);
    const int64_t query_bytes = plan.prepared.planes * plan.prepared.query_stride;
    const int64_t fit = kPreparedBytes / query_bytes / kFewQueries * kFewQueries;
    plan.group = std::min(queries.count, std::max(kFewQueries, std::min(fit, kMostOfFewQueries)));

    const int64_t list_bytes =
        plan.group * plan.few.lists_per_block * plan.lists.k * static_cast<int64_t>(sizeof(Key));
    int64_t blocks = few_blocks(corpus.type, plan.few) / div_up(plan.group, of_block);
    blocks = std::min({blocks, kListBytes / list_bytes, div_up(corpus.count, plan.few.block_rows)});
    plan.blocks = std::max<int64_t>(blocks, 1);
    plan.lists.count = plan.blocks * plan.few.lists_per_block;
}

void plan_many_queries(const CudaRows& queries, const CudaRows& corpus, Plan& plan) {
    const int64_t units = device_attribute(cudaDevAttrMultiProcessorCount);
    const int64_t columns = plan.prepared.columns;
    const auto tiles_of = [&](bool few_rows) {
        ManyPlan tiles = plan_many(corpus.type, columns, plan.lists.k, few_rows, true);
        plan.lists.in_shared =
            plan.lists.k <= kMostListed && static_cast<int64_t>(tiles.shared) <= shared_limit();
        if (!plan.lists.in_shared) {
            tiles = plan_many(corpus.type, columns, plan.lists.k, few_rows, false);
        }
        return tiles;
    };
    plan.tiles = tiles_of(false);
    const int64_t of_tile = plan.tiles.tile_queries;
    const int64_t query_bytes = plan.prepared.planes * plan.prepared.query_stride;
    const int64_t fit = kPreparedBytes / query_bytes / of_tile * of_tile;
    plan.group = std::min(queries.count, std::max(of_tile, std::min(fit, kMostOfManyQueries)));
    plan.query_tiles = div_up(plan.group, of_tile);
    if (div_up(corpus.count, plan.tiles.tile_rows) * plan.query_tiles < kTilesEach * units) {
        plan.tiles = tiles_of(true);
    }
    const int64_t block_bytes =
        of_tile * (plan.tiles.tile_rows + plan.lists.k) * static_cast<int64_t>(sizeof(Key));
    int64_t blocks = std::min(many_blocks(corpus.type, plan.tiles), kListBytes / block_bytes);
    blocks = std::min(blocks / plan.query_tiles, div_up(corpus.count, plan.tiles.tile_rows));
    plan.lists.count = std::max<int64_t>(blocks, 1);
    plan.blocks = plan.lists.count * plan.query_tiles;
}

Plan plan_search(const CudaRows& queries, const CudaRows& corpus, int64_t k) {
    Plan plan{};
    plan.lists.k = static_cast<int>(std::min(k, corpus.count));
    plan.many =
        queries.count > kFewQueries && (corpus.type == DataType::float32 || has_tensor_cores());
    plan.prepared = describe_prepared(queries, corpus, plan.many);
    if (plan.many) {
        plan_many_queries(queries, corpus, plan);
    } else {
        plan_few_queries(queries, corpus, plan);
    }
    return plan;
}

}  // namespace

int64_t cuda_cosine_topk_workspace(const CudaRows& queries, const CudaRows& corpus, int64_t k,
                                   int device) {
    require_sizes(queries, corpus, k);
    if (queries.count == 0 || corpus.count == 0) return 0;
    const CurrentDevice current(device);
    Plan plan = plan_search(queries, corpus, k);
    Workspace workspace(nullptr);
    plan.take(workspace);
    return workspace.bytes();
}

void cuda_cosine_topk(const CudaRows& queries, const CudaRows& corpus, const float* inverse_norms,
                      const uint8_t* mask, int64_t k, float* scores, int64_t* indices,
                      void* workspace, int64_t workspace_bytes, int device, void* stream) {
    require_sizes(queries, corpus, k);
    if (queries.count == 0 || corpus.count == 0) return;
    require(inverse_norms != nullptr, "inverse_norms must not be null");
    require(scores != nullptr && indices != nullptr, "scores and indices must not be null");
    const CurrentDevice current(device);
    Plan plan = plan_search(queries, corpus, k);
    Workspace pieces(workspace);
    plan.take(pieces);
    require_workspace(pieces, workspace, workspace_bytes);

    const auto used = static_cast<cudaStream_t>(stream);
    const DeviceRows all_queries(queries), rows(corpus);
    const int width = plan.lists.k;
    const Start start{plan.lists.thresholds, plan.shared_best, width};
    for (int64_t first = 0; first < queries.count; first += plan.group) {
        const int64_t count = std::min(plan.group, queries.count - first);
        prepare_queries(all_queries, first, count, plan.prepared, start, used);
        if (plan.many) {
            search_many(
                {rows, all_queries, first, count, inverse_norms, mask, plan.prepared, plan.lists,
                 plan.shared_best, plan.waiting, static_cast<int>(plan.query_tiles)},
                plan.tiles, used);
        } else {
            search_few({rows, all_queries, first, count, inverse_norms, mask, nullptr, nullptr, 0,
                        plan.prepared, plan.lists, plan.few.chunk_columns, plan.few.chunked},
                       plan.few, plan.blocks, used);
        }
        merge_lists(plan.lists, count, width, scores + first * width, indices + first * width,
                    used);
    }
}

}  // namespace clara
