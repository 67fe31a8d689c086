#include "cuda/workspace.hpp"

namespace clara {
namespace {

constexpr int64_t kMostQueries = 4096;  // at a time
constexpr int64_t kLeastGroup = 8;
constexpr int64_t kWaves = 4;  // blocks for those that the device runs at a time

struct Plan {
    FewPlan few;
    Prepared prepared;
    Lists lists;
    int64_t group;
    int64_t blocks;  // of each query
};

Plan plan_rerank(const CudaRows& queries, const CudaRows& corpus, int64_t candidates, int64_t k) {
    Plan plan{};
    plan.lists.k = static_cast<int>(k);
    plan.prepared = describe_prepared(queries, corpus, false);
    plan.few = plan_few_lists(corpus.type, 1, plan.prepared, plan.lists);
    const int64_t query_bytes = plan.prepared.planes * plan.prepared.query_stride;
    const int64_t list_bytes = plan.few.lists_per_block * k * static_cast<int64_t>(sizeof(Key));
    plan.group = std::min({queries.count, kMostQueries, kListBytes / list_bytes,
                           std::max<int64_t>(kPreparedBytes / query_bytes, kLeastGroup)});
    // All candidates may belong to one query.
    const int64_t blocks = std::min({div_up(candidates, plan.few.block_rows),
                                     div_up(kWaves * few_blocks(corpus.type, plan.few), plan.group),
                                     kListBytes / (plan.group * list_bytes)});
    plan.blocks = std::max<int64_t>(blocks, 1);
    plan.lists.count = plan.blocks * plan.few.lists_per_block;
    return plan;
}

void require_rerank(const CudaRows& queries, const CudaRows& corpus, int64_t candidates,
                    int64_t k) {
    require_sizes(queries, corpus, k);
    require(candidates >= 0, "candidates must be 0 or more, got " + std::to_string(candidates));
}

}  // namespace

int64_t cuda_cosine_rerank_workspace(const CudaRows& queries, const CudaRows& corpus,
                                     int64_t candidates, int64_t k, int device) {
    require_rerank(queries, corpus, candidates, k);
    if (queries.count == 0) return 0;
    const CurrentDevice current(device);
    Plan plan = plan_rerank(queries, corpus, candidates, k);
    Workspace workspace(nullptr);
    take_common(workspace, plan.group, plan.prepared, plan.lists);
    return workspace.bytes();
}

void cuda_cosine_rerank(const CudaRows& queries, const CudaRows& corpus, const float* inverse_norms,
                        const int64_t* rows, int64_t candidates, const int32_t* offsets, int64_t k,
                        float* scores, int64_t* indices, void* workspace, int64_t workspace_bytes,
                        int device, void* stream) {
    require_rerank(queries, corpus, candidates, k);
    if (queries.count == 0) return;
    require(inverse_norms != nullptr || corpus.count == 0, "inverse_norms must not be null");
    require(offsets != nullptr, "offsets must not be null");
    require(scores != nullptr && indices != nullptr, "scores and indices must not be null");
    const CurrentDevice current(device);
    Plan plan = plan_rerank(queries, corpus, candidates, k);
    Workspace pieces(workspace);
    take_common(pieces, plan.group, plan.prepared, plan.lists);
    require_workspace(pieces, workspace, workspace_bytes);

    const auto used = static_cast<cudaStream_t>(stream);
    const DeviceRows all_queries(queries), all_rows(corpus);
    const int width = plan.lists.k;
    const Start start{plan.lists.thresholds, nullptr, width};
    for (int64_t first = 0; first < queries.count; first += plan.group) {
        const int64_t count = std::min(plan.group, queries.count - first);
        prepare_queries(all_queries, first, count, plan.prepared, start, used);
        search_few(
            {all_rows, all_queries, first, count, inverse_norms, nullptr, rows, offsets, candidates,
             plan.prepared, plan.lists, plan.few.chunk_columns, plan.few.chunked},
            plan.few, plan.blocks, used);
        merge_lists(plan.lists, count, width, scores + first * width, indices + first * width,
                    used);
    }
}

}  // namespace clara
