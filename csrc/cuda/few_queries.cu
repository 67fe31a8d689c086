#include <algorithm>

#include "cuda/few_multiply.cuh"
#include "cuda/few_queries.cuh"
#include "cuda/launch.hpp"

namespace clara {
namespace {

constexpr int kThreads = 256;         // where queries stay in shared memory
constexpr int kChunkedThreads = 128;  // where they do not: fewer rows, so that all blocks have some
constexpr int kResidentBytes = 40 << 10;
constexpr int kChunkBytes = 16 << 10;
constexpr int kMostChunkColumns = 2048;
constexpr uint32_t kNoRow = 0xffffffffu;

/// Queries in shared memory, a chunk of columns at a time: [queries, planes, chunk_columns].
template <class Row, int kQueries>
struct QueryChunks {
    using S = Shape<Row, kQueries>;
    const Prepared& from;
    uint8_t* shared;
    int first;  // query
    int count;
    int columns;  // of a chunk
    bool chunked;
    int next = 0;    // column that load() takes
    int loaded = 0;  // chunks so far

    __device__ int plane_bytes() const { return columns * S::kColumnBytes; }
    __device__ int bytes() const { return kQueries * S::kPlanes * plane_bytes(); }

    __device__ void load() {
        uint8_t* to = shared + (loaded % 2) * bytes();
        const int vectors = plane_bytes() / 16;
        for (int i = threadIdx.x; i < vectors * kQueries * S::kPlanes; i += blockDim.x) {
            const int plane = i / vectors, at = i % vectors * 16;
            const int query = plane / S::kPlanes, offset = next * S::kColumnBytes + at;
            const bool there = query < count && offset < from.columns * S::kColumnBytes;
            const uint8_t* address =
                from.data + (there ? (first + query) * from.query_stride +
                                         plane % S::kPlanes * from.plane_stride + offset
                                   : 0);
            cp_async_16(to + plane * plane_bytes() + at, address, there ? 16 : 0);
        }
        cp_async_commit();
        ++loaded;
        next += columns;
        if (next >= from.columns) next = 0;
    }

    /// The chunk that comes next, by all threads of the block. Starts to load the one after it.
    __device__ const uint8_t* advance() {
        cp_async_wait<0>();
        __syncthreads();
        const uint8_t* current = shared + ((loaded - 1) % 2) * bytes();
        if (chunked) load();
        return current;
    }
};

/// Rows, or candidates, that are left to a block.
struct Range {
    uint32_t begin, count;
};

/// What of the corpus a lane reads and whose scores it has in the end.
template <class Row, int kQueries>
struct Position {
    using S = Shape<Row, kQueries>;
    uint32_t rows[S::kRows];
    uint32_t own = kNoRow;  // row of the lane's sums
    float norm = 0;         // its inverse

    __device__ static uint32_t row_at(const FewArguments& a, const Range& range, uint32_t i) {
        if (i >= range.count) return kNoRow;
        const int64_t position = int64_t{range.begin} + i;
        const int64_t row = a.listed != nullptr ? a.listed[position] : position;
        if (row < 0 || row >= a.corpus.count) return kNoRow;
        return a.mask != nullptr && a.mask[row] == 0 ? kNoRow : static_cast<uint32_t>(row);
    }

    /// To the warp's rows, `offset` after the block's.
    __device__ void move(const FewArguments& a, const Range& range, uint32_t offset) {
        offset += threadIdx.x / 32 * S::kWarpRows;
        const int lane = threadIdx.x % kLanes, group = threadIdx.x % 32 / kLanes;
        const int own_row = lane * S::kSums / kLanes / kQueries;
        CLARA_UNROLL
        for (int r = 0; r < S::kRows; ++r) {
            const uint32_t row = row_at(a, range, offset + r * (32 / kLanes) + group);
            rows[r] = row;
            if (r == own_row) own = row;
        }
        norm = own != kNoRow ? a.inverse_norms[own] : 0.0f;
    }
    __device__ void load(const DeviceRows& corpus, int step, uint4 (&to)[S::kRows]) const {
        const int offset = (step * kLanes + static_cast<int>(threadIdx.x % kLanes)) * 16;
        const uint8_t* addresses[S::kRows];
        CLARA_UNROLL
        for (int r = 0; r < S::kRows; ++r) {
            addresses[r] = rows[r] != kNoRow ? corpus.row(rows[r]) : nullptr;
        }
        load_vectors<Row>(addresses, offset, corpus.row_bytes<Row>(), corpus.aligned, to);
    }
};

/// A warp's lists, one for each query, and keys on their way there.
template <class Row, int kQueries>
struct WarpLists {
    using S = Shape<Row, kQueries>;
    Key* heaps;       // [kQueries, k]
    int heap_stride;  // from query to query
    Key* waiting;     // [kQueries, kWarpRows]
    int* counts;      // [kQueries]
    int live;         // queries that there are

    __device__ void clear(int k) {
        const int lane = threadIdx.x % 32;
        for (int q = 0; q < live; ++q) {
            for (int i = lane; i < k; i += 32) heaps[q * heap_stride + i] = 0;
        }
        if (lane < kQueries) counts[lane] = 0;
        __syncwarp();
    }

    __device__ void offer(const FewArguments& a, const typename S::Total* totals,
                          const float* scales, uint32_t own, float norm, int64_t first) {
        const int lane = threadIdx.x % 32;
        const int first_own = lane % kLanes * S::kSums / kLanes % kQueries;
        const bool twin = S::kSums < kLanes && lane % (kLanes / S::kSums) != 0;
        bool any = false;
        CLARA_UNROLL
        for (int i = 0; i < S::kOwn; ++i) {
            const int q = first_own + i;
            if (own == kNoRow || twin || q >= live) continue;
            const float score = static_cast<float>(totals[i * blockDim.x]) * scales[q] * norm;
            uint32_t order = order_of(score);
            if (norm == kExtremeNorm && scales[q] == scales[q]) order = kUnknownOrder;
            const Key key = make_key(order, own);
            if (key <= heaps[q * heap_stride]) continue;
            waiting[q * S::kWarpRows + atomicAdd(&counts[q], 1)] = key;
            any = true;
        }
        if (!__any_sync(kAllLanes, any)) return;
        __syncwarp();
        const bool owner = lane < live;
        const int q = owner ? lane : 0;
        drain({waiting + q * S::kWarpRows, 1, owner ? counts[q] : 0},
              {heaps + q * heap_stride, 1, a.lists.k}, first + q, a.queries, a.corpus);
        __syncwarp();
        if (owner) counts[q] = 0;
        __syncwarp();
    }
};

/// All that query `first` of the launch is compared with.
__device__ Range range_of(const FewArguments& a, int first) {
    if (a.offsets == nullptr) return {0, static_cast<uint32_t>(a.corpus.count)};
    const int64_t most = a.listed != nullptr ? a.candidates : a.corpus.count;
    int64_t begin = a.offsets[a.first_query + first], end = a.offsets[a.first_query + first + 1];
    begin = begin > 0 ? begin : 0;
    end = end < most ? end : most;
    return {static_cast<uint32_t>(begin), end > begin ? static_cast<uint32_t>(end - begin) : 0};
}

/// Puts all keys of the block's warps for one query into the first warp's list; by one warp.
__device__ void merge_warps(Key* first, int warps, int apart, int k) {
    if (threadIdx.x % 32 == 0) {
        Heap heap{first, 1, k};
        CLARA_NO_UNROLL
        for (int w = 1; w < warps; ++w) {
            const Key* other = first + w * apart;
            CLARA_NO_UNROLL
            for (int i = 0; i < k; ++i) heap.offer(other[i]);
        }
    }
    __syncwarp();
}

__device__ void publish(Key worst, Key& threshold) {
    if (threadIdx.x % 32 == 0 && worst != 0) atomicMax(&threshold, worst);
}

template <class Row, int kQueries>
__global__ void __launch_bounds__(kThreads, 2) few_queries(const FewArguments a) {
    using S = Shape<Row, kQueries>;
    CLARA_SHARED(shared);
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int first = blockIdx.y * kQueries;  // query
    const int left = static_cast<int>(a.query_count) - first;
    const int live = left < kQueries ? left : kQueries;

    QueryChunks<Row, kQueries> chunks{a.prepared, shared, first, live, a.chunk_columns, a.chunked};
    uint8_t* rest = shared + chunks.bytes() * (a.chunked ? 2 : 1);
    auto* totals = reinterpret_cast<typename S::Total*>(rest) + threadIdx.x;  // [kOwn, threads]
    rest += S::kOwn * blockDim.x * sizeof(typename S::Total);
    WarpLists<Row, kQueries> lists;
    lists.live = live;
    lists.waiting = reinterpret_cast<Key*>(rest) + warp * kQueries * S::kWarpRows;
    rest += warps * kQueries * S::kWarpRows * sizeof(Key);
    lists.counts = reinterpret_cast<int*>(rest) + warp * kQueries;
    rest += warps * kQueries * sizeof(int);
    float* scales = reinterpret_cast<float*>(rest) + warp * kQueries;
    rest += warps * kQueries * sizeof(float);
    // The block's list, or the warp's own.
    const int64_t list = a.lists.in_shared ? blockIdx.x : int64_t{blockIdx.x} * warps + warp;
    const int out_stride = static_cast<int>(a.lists.count) * a.lists.k;
    Key* const out = a.lists.keys + int64_t{first} * out_stride + list * a.lists.k;
    lists.heaps = out;
    lists.heap_stride = out_stride;
    if (a.lists.in_shared) {
        lists.heaps = reinterpret_cast<Key*>(rest) + warp * kQueries * a.lists.k;
        lists.heap_stride = a.lists.k;
    }
    const int warp_lane = threadIdx.x % 32;
    if (warp_lane < live) scales[warp_lane] = a.prepared.scales[first + warp_lane];
    lists.clear(a.lists.k);

    Range range = range_of(a, first);
    const uint32_t block_rows = warps * S::kWarpRows, stride = gridDim.x * block_rows;
    const uint32_t skipped = blockIdx.x * block_rows;
    range = {range.begin + skipped, range.count > skipped ? range.count - skipped : 0};
    const int steps = static_cast<int>(a.prepared.columns / S::kStep);
    const int chunk_steps = a.chunk_columns / S::kStep;

    chunks.load();
    const uint8_t* chunk = chunks.advance();
    bool fresh = true;  // `chunk` has not been used
    Position<Row, kQueries> here, ahead;
    uint4 rows[S::kRows], next[S::kRows];
    here.move(a, range, 0);
    here.load(a.corpus, 0, rows);
    ahead = here;
    CLARA_NO_UNROLL
    while (range.count > 0) {  // all warps go on together
        typename S::Sum sums[S::kPlanes * S::kSums] = {};
        int in_chunk = 0;
        CLARA_NO_UNROLL
        for (int step = 0; step < steps; ++step) {
            if (a.chunked && in_chunk == 0 && !fresh) chunk = chunks.advance();
            fresh = false;
            const bool is_last = step + 1 == steps;
            if (is_last) ahead.move(a, range, stride);
            ahead.load(a.corpus, is_last ? 0 : step + 1, next);
            const int at = in_chunk * S::kStep * S::kColumnBytes + lane * 16;
            Worker<Row, kQueries>::multiply(rows, chunk + at, chunks.plane_bytes(), sums);
            CLARA_UNROLL
            for (int r = 0; r < S::kRows; ++r) rows[r] = next[r];
            if (is_last || (step + 1) % S::kSegmentSteps == 0) {
                Worker<Row, kQueries>::flush(sums, lane, step < S::kSegmentSteps, totals);
            }
            if (++in_chunk == chunk_steps) in_chunk = 0;
        }
        lists.offer(a, totals, scales, here.own, here.norm, a.first_query + first);
        here.own = ahead.own;
        here.norm = ahead.norm;
        range.begin += stride;
        range.count = range.count > stride ? range.count - stride : 0;
    }
    cp_async_wait<0>();
    __syncwarp();
    if (a.lists.in_shared) {
        __syncthreads();
        Key* all = reinterpret_cast<Key*>(rest);
        for (int q = warp; q < live; q += warps) {
            merge_warps(all + q * a.lists.k, warps, kQueries * a.lists.k, a.lists.k);
            for (int i = warp_lane; i < a.lists.k; i += 32) {
                out[int64_t{q} * out_stride + i] = all[q * a.lists.k + i];
            }
            publish(all[q * a.lists.k], a.lists.thresholds[first + q]);
        }
    } else {
        for (int q = 0; q < live; ++q)
            publish(out[int64_t{q} * out_stride], a.lists.thresholds[first + q]);
    }
}

template <class Function>
auto with_kernel(DataType type, int queries, const Function& function) {
    const auto of_row = [&](auto row) {
        using Row = decltype(row);
        return function(queries == 1   ? few_queries<Row, 1>
                        : queries == 4 ? few_queries<Row, 4>
                                       : few_queries<Row, 8>);
    };
    switch (type) {
        case DataType::float32:
            return of_row(Float32Row{});
        case DataType::float16:
            return of_row(Float16Row{});
        case DataType::bfloat16:
            return of_row(Bfloat16Row{});
        default:
            return of_row(Int8Row{});
    }
}

}  // namespace

FewPlan plan_few(DataType type, int most_queries, int64_t columns, int k, bool lists_in_shared) {
    const bool codes = type == DataType::int8;
    const int column_bytes = codes ? 2 : 4;
    const int64_t all = most_queries * columns * column_bytes;
    FewPlan plan{};
    plan.most_queries = most_queries;
    plan.chunked = all > kResidentBytes;
    plan.chunk_columns =
        plan.chunked ? std::min(kChunkBytes / (most_queries * column_bytes), kMostChunkColumns)
                     : static_cast<int>(columns);
    plan.threads = plan.chunked ? kChunkedThreads : kThreads;
    const int warps = plan.threads / 32, warp_rows = codes && most_queries == 8 ? 8 : 16;
    plan.lists_per_block = lists_in_shared ? 1 : warps;
    plan.block_rows = warps * warp_rows;
    const int64_t of_query = warp_rows * sizeof(Key) + sizeof(int) + sizeof(float) +
                             (lists_in_shared ? k * sizeof(Key) : 0);
    const int64_t own = std::max(1, warp_rows / 4 * most_queries / kLanes);  // totals of a lane
    plan.shared = static_cast<size_t>(
        most_queries *
            (plan.chunk_columns * column_bytes * (plan.chunked ? 2 : 1) + warps * of_query) +
        own * plan.threads * (codes ? sizeof(float) : sizeof(double)));
    return plan;
}

int64_t few_blocks(DataType type, const FewPlan& plan) {
    return with_kernel(type, plan.most_queries, [&](auto kernel) -> int64_t {
        return blocks_per_multiprocessor(kernel, plan.threads, plan.shared) *
               int64_t{device_attribute(cudaDevAttrMultiProcessorCount)};
    });
}

void search_few(const FewArguments& arguments, const FewPlan& plan, int64_t blocks,
                cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(blocks),
                    static_cast<unsigned>(div_up(arguments.query_count, plan.most_queries)));
    with_kernel(arguments.corpus.type, plan.most_queries, [&](auto kernel) {
        launch(kernel, grid, plan.threads, plan.shared, stream, arguments);
    });
}

}  // namespace clara
