#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/arguments.hpp"
#include "cuda/current_device.hpp"
#include "cuda/merge.cuh"

namespace clara {

constexpr int64_t kPreparedBytes = 16 << 20;  // of queries that are searched for at a time
constexpr int64_t kListBytes = 46 << 20;      // of lists and of what waits for them
constexpr int64_t kMostListed = 64;           // results up to which lists lie in shared memory
constexpr int64_t kMostShared = 99 << 10;     // of a block: what most devices have

/// Takes pieces of a workspace one after another; from null, only counts.
class Workspace {
public:
    explicit Workspace(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {
        next_ = static_cast<int64_t>(round_up(base_, kAlignment) - base_);
    }

    template <class T>
    T* take(int64_t count) {
        T* taken = base_ == 0 ? nullptr : reinterpret_cast<T*>(base_ + next_);
        next_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
        return taken;
    }

    /// Bytes needed, wherever the workspace begins.
    int64_t bytes() const { return next_ + kAlignment; }
    int64_t used() const { return next_; }

private:
    static constexpr int64_t kAlignment = 256;
    uintptr_t base_;
    int64_t next_;
};

inline int64_t shared_limit() {
    return std::min<int64_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                             kMostShared);
}

/// Which form of queries suits a corpus, and how much of it there is; without addresses.
inline Prepared describe_prepared(const CudaRows& queries, const CudaRows& corpus,
                                  bool tensor_cores) {
    Prepared prepared{};
    prepared.type = corpus.type;
    prepared.planes = 1;
    const int64_t columns = std::max<int64_t>(corpus.columns, 1);
    if (corpus.type == DataType::int8) {
        prepared.form = Form::codes;
        prepared.planes = 2;
        prepared.columns = round_up(columns, 128);
        prepared.query_stride = prepared.columns;
    } else if (tensor_cores && corpus.type != DataType::float32) {
        // bfloat16 pieces have 8 bits of a number, float16 pieces 11.
        const bool same = queries.type == corpus.type;
        const bool three = corpus.type == DataType::bfloat16 && queries.type == DataType::float32;
        prepared.form = Form::pieces;
        prepared.planes = same ? 1 : three ? 3 : 2;
        prepared.columns = round_up(columns, 32);
        prepared.query_stride = prepared.columns * 2;
    } else {
        prepared.form = Form::unit;
        prepared.columns = round_up(columns, corpus.type == DataType::float32 ? 32 : 64);
        prepared.query_stride = prepared.columns * 4;
    }
    return prepared;
}

/// Takes what every search needs for `group` queries at a time.
inline void take_common(Workspace& workspace, int64_t group, Prepared& prepared, Lists& lists) {
    prepared.plane_stride = group * prepared.query_stride;
    prepared.data = workspace.take<uint8_t>(prepared.planes * prepared.plane_stride);
    prepared.scales = workspace.take<float>(group);
    lists.thresholds = workspace.take<Key>(group);
    lists.keys = workspace.take<Key>(group * lists.count * lists.k);
}

inline void require_workspace(const Workspace& workspace, const void* base, int64_t bytes) {
    require(base != nullptr && workspace.used() <= bytes,
            "workspace must have " + std::to_string(workspace.bytes()) + " bytes, got " +
                std::to_string(base != nullptr ? bytes : 0));
}

/// Plans few queries with lists in shared memory if they fit there.
inline FewPlan plan_few_lists(DataType type, int most_queries, const Prepared& prepared,
                              Lists& lists) {
    FewPlan plan = plan_few(type, most_queries, prepared.columns, lists.k, true);
    lists.in_shared = lists.k <= kMostListed && static_cast<int64_t>(plan.shared) <= shared_limit();
    if (!lists.in_shared) plan = plan_few(type, most_queries, prepared.columns, lists.k, false);
    return plan;
}

}  // namespace clara
