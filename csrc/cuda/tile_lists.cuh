#pragma once

#include "cuda/tile_loader.cuh"

namespace clara {

/// A block's lists and what it compares scores with. Thread i looks after query i of the tile.
template <int kQueries, int kRows>
struct TileLists {
    const ManyArguments& a;
    int64_t first_query;  // of the tile, within the launch
    int64_t list;         // the block's among those of each query
    Key* heaps;           // interleaved in shared memory, one after another in the workspace
    float* thresholds;    // [kQueries], shared
    float* scales;        // [kQueries], shared
    float* norms;         // [kRows], shared; NaN where a score needs a closer look
    int* counts;          // [kQueries], shared
    Key* waiting;         // [kRows, kQueries], the workspace's
    Key published = 0;    // the best key of this query that other blocks know of

    static constexpr int kSharedBytes = (3 * kQueries + kRows) * 4;

    __device__ TileLists(const ManyArguments& arguments, uint8_t* shared, int64_t query_tile,
                         int64_t block, int64_t list_number)
        : a(arguments), first_query(query_tile * kQueries), list(list_number) {
        thresholds = reinterpret_cast<float*>(shared);
        scales = thresholds + kQueries;
        counts = reinterpret_cast<int*>(scales + kQueries);
        norms = reinterpret_cast<float*>(counts + kQueries);
        heaps = a.lists.in_shared ? reinterpret_cast<Key*>(shared + kSharedBytes) : nullptr;
        waiting = a.waiting + block * kRows * kQueries;
    }

    __device__ bool looks_after_query() const {
        return threadIdx.x < kQueries && first_query + threadIdx.x < a.query_count;
    }
    __device__ Key* list_in_workspace() const {
        return a.lists.keys + ((first_query + threadIdx.x) * a.lists.count + list) * a.lists.k;
    }
    __device__ Heap heap() const {
        if (a.lists.in_shared) return {heaps + threadIdx.x, kQueries, a.lists.k};
        return {looks_after_query() ? list_in_workspace() : nullptr, 1, a.lists.k};
    }

    __device__ void start() {
        if (threadIdx.x < kQueries) {
            counts[threadIdx.x] = 0;
            thresholds[threadIdx.x] = infinity();  // nothing passes
            scales[threadIdx.x] = 0;
        }
        if (!looks_after_query()) return;
        scales[threadIdx.x] = a.prepared.scales[first_query + threadIdx.x];
        const Heap own = heap();
        for (int i = 0; i < own.size; ++i) own.keys[int64_t{i} * own.stride] = 0;
    }

    /// Before the scores of a tile are known; the block meets before they are.
    __device__ void begin_tile(int tile) {
        if (looks_after_query()) {
            const Key others =
                *static_cast<volatile Key*>(&a.lists.thresholds[first_query + threadIdx.x]);
            const Key own = heap().root();
            thresholds[threadIdx.x] = threshold_of(others > own ? others : own);
        }
        const int64_t row = int64_t{tile} * kRows + threadIdx.x;
        if (threadIdx.x < kRows) {
            float norm = row < a.corpus.count ? a.inverse_norms[row] : kExtremeNorm;
            if (a.mask != nullptr && row < a.corpus.count && a.mask[row] == 0) norm = kExtremeNorm;
            norms[threadIdx.x] = norm >= 0 ? norm : __uint_as_float(0x7fc00000u);
        }
    }

    /// Puts rows aside whose scores have reached the query's threshold: dots[j] is the product with
    /// row row_of(j) of the tile. Returns whether any has. Little code, for it is run for each
    /// tile.
    template <int kCount, class RowOf>
    __device__ bool compare(int query, int tile, const float (&dots)[kCount],
                            const RowOf& row_of) const {
        const float scale = scales[query], threshold = thresholds[query];
        float scores[kCount];
        unsigned passed = 0;
        CLARA_UNROLL
        for (int j = 0; j < kCount; ++j) {
            scores[j] = dots[j] * scale * norms[row_of(j)];
            passed |= scores[j] < threshold ? 0u : 1u << j;
        }
        if (passed == 0 || threshold == infinity())
            return false;  // infinity: there is no such query
        CLARA_NO_UNROLL
        for (; passed != 0; passed &= passed - 1) {
            const int found = __ffs(passed) - 1;
            float score = scores[0];
            CLARA_UNROLL
            for (int j = 1; j < kCount; ++j) score = j == found ? scores[j] : score;
            put_aside(query, tile, row_of(found), score);
        }
        return true;
    }

    /// Puts aside row `row` of the tile, whose score has reached the query's threshold.
    __device__ void put_aside(int query, int tile, int row, float score) const {
        const int64_t index = int64_t{tile} * kRows + row;
        uint32_t order = order_of(score);
        if (order == kNanOrder) {
            if (index >= a.corpus.count || (a.mask != nullptr && a.mask[index] == 0)) return;
            const float scale = scales[query];
            if (a.inverse_norms[index] == kExtremeNorm && scale == scale) order = kUnknownOrder;
        }
        const int at = atomicAdd(&counts[query], 1);
        waiting[at * kQueries + query] = make_key(order, static_cast<uint32_t>(index));
    }

    /// After the block's last put_aside; thresholds are not read before begin_tile.
    __device__ void end_tile(bool any) {
        if (__syncthreads_or(any) == 0) return;
        if (threadIdx.x >= round_up(kQueries, 32)) return;
        const bool mine = looks_after_query();
        const int64_t query = first_query + threadIdx.x;
        const Heap own = heap();
        const Key best = drain({waiting + threadIdx.x, kQueries, mine ? counts[threadIdx.x] : 0},
                               own, a.first_query + query, a.queries, a.corpus);
        if (!mine) return;
        counts[threadIdx.x] = 0;
        const Key worst = own.root();
        if (worst != 0) atomicMax(&a.lists.thresholds[query], worst);
        if (a.shared_best != nullptr && best > published) publish(best, query);
    }

    /// The k-th best of all that blocks publish bounds every list. A key is published once.
    __device__ void publish(Key key, int64_t query) {
        published = key;
        Key* best = a.shared_best + query * a.lists.k;  // descending
        for (int i = 0; i < a.lists.k && key != 0; ++i) {
            const Key before = atomicMax(&best[i], key);
            key = before < key ? before : key;
        }
        const Key worst = *static_cast<volatile Key*>(&best[a.lists.k - 1]);
        if (worst != 0) atomicMax(&a.lists.thresholds[query], worst);
    }

    __device__ void finish() const {
        if (!a.lists.in_shared || !looks_after_query()) return;
        const Heap own = heap();
        Key* out = list_in_workspace();
        for (int i = 0; i < own.size; ++i) out[i] = own.keys[int64_t{i} * own.stride];
    }
};

}  // namespace clara
