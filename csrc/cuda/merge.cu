#include "cuda/launch.hpp"
#include "cuda/merge.cuh"

namespace clara {
namespace {

constexpr int kThreads = 512;
constexpr int kCapacity = 4096;  // keys in shared memory: the best 2,048 and what comes next
constexpr int kEach = 4;         // keys that a thread reads at a time

/// Descending order of a power of two of keys, by the whole block.
__device__ void sort_descending(Key* keys, int count) {
    for (int size = 2; size <= count; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < count / 2; i += kThreads) {
                const int low = 2 * i - i % stride, high = low + stride;
                const Key a = keys[low], b = keys[high];
                if ((a < b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

/// Sorts keys[0 … count) and fills the power of two that they lie in with zeros.
__device__ void sort_some(Key* keys, int count) {
    int power = 32;
    while (power < count) power *= 2;
    for (int i = count + threadIdx.x; i < power; i += kThreads) keys[i] = 0;
    sort_descending(keys, power);
}

/// One block for each query.
__global__ void __launch_bounds__(kThreads)
    merge(const Lists lists, int width, float* scores, int64_t* indices) {
    CLARA_SHARED(shared);
    Key* keys = reinterpret_cast<Key*>(shared);  // [kCapacity]
    int* count = reinterpret_cast<int*>(keys + kCapacity);
    const int64_t query = blockIdx.x, total = lists.count * lists.k;
    const Key* from = lists.keys + query * total;
    Key threshold = lists.thresholds[query];
    if (threshold == 0) threshold = 1;
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    for (int64_t base = 0; base < total; base += kThreads * kEach) {
        Key found[kEach];
        CLARA_UNROLL
        for (int j = 0; j < kEach; ++j) {
            const int64_t i = base + j * kThreads + threadIdx.x;
            found[j] = i < total ? from[i] : 0;
        }
        CLARA_UNROLL
        for (int j = 0; j < kEach; ++j) {
            if (found[j] >= threshold) keys[atomicAdd(count, 1)] = found[j];
        }
        __syncthreads();
        const int held = *count;
        __syncthreads();
        if (held <= kCapacity - kThreads * kEach) continue;
        sort_some(keys, held);
        if (keys[width - 1] > threshold) threshold = keys[width - 1];
        __syncthreads();
        if (threadIdx.x == 0) *count = held < width ? held : width;
        __syncthreads();
    }
    const int held = *count;
    sort_some(keys, held);
    for (int i = threadIdx.x; i < width; i += kThreads) {
        const Key key = i < held ? keys[i] : 0;
        scores[query * width + i] = score_of(key);
        indices[query * width + i] = key != 0 ? static_cast<int64_t>(row_of(key)) : -1;
    }
}

}  // namespace

void merge_lists(const Lists& lists, int64_t query_count, int width, float* scores,
                 int64_t* indices, cudaStream_t stream) {
    launch(merge, dim3(static_cast<unsigned>(query_count)), kThreads,
           kCapacity * sizeof(Key) + sizeof(int), stream, lists, width, scores, indices);
}

}  // namespace clara
