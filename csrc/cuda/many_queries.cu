#include <type_traits>

#include "cuda/launch.hpp"
#include "cuda/many_queries.cuh"
#include "cuda/tile_lists.cuh"

namespace clara {
namespace {

constexpr int kSegmentColumns = 65536;  // of codes, whose int32 sums hold no more
// Of halves. A tensor core cuts off what a product has below the last bit of the sum it is added
// to: the longer the sum, the more is lost, and always towards zero.
// Below sm_80 halves are not multiplied on tensor cores, and this is unused.
[[maybe_unused]] constexpr int kSegmentSlices = 128;

/// Lines of queries are `kLines` = 128 in 4 warps' 2 x 2 parts of the tile; 2 kTiles blocks of 8
/// rows.
template <class Row, class Mma, int kRowTiles>
struct MmaTile {
    static constexpr bool kCodes = Row::kVector == 16;
    static constexpr int kLines = 128;
    static constexpr int kQueries = kCodes ? 64 : 128;
    static constexpr int kRows = 16 * kRowTiles;
    using Sum = typename Mma::Sum;
    using Loader = TileLoader<Row, kLines, kRows>;
    using TheLists = TileLists<kQueries, kRows>;

    Sum sums[4][kRowTiles][4];  // [16 lines, 8 rows] each, as mma.sync has them
    float* totals;  // of more than a segment, [sums of a thread, threads]: of codes in shared
                    // memory, of halves where keys wait when a tile is done

    __device__ void clear() {
        CLARA_UNROLL
        for (int m = 0; m < 4; ++m) {
            CLARA_UNROLL
            for (int n = 0; n < kRowTiles; ++n) {
                CLARA_UNROLL
                for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
            }
        }
    }

    __device__ void multiply(const uint8_t* stage) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint8_t* rows = stage + kLines * kSliceBytes;
        const int line = warp / 2 * 64 + lane % 16;
        const int row = warp % 2 * (kRows / 2) + lane % 8 + lane / 16 * 8;
        CLARA_UNROLL
        for (int half = 0; half < 2; ++half) {
            const uint8_t* a_from = stage + slice_offset(line, half * 2 + lane / 16);
            const uint8_t* b_from = rows + slice_offset(row, half * 2 + lane / 8 % 2);
            uint32_t b[kRowTiles][2];
            CLARA_UNROLL
            for (int n = 0; n < kRowTiles; n += 2) {
                uint32_t two[4];
                ldmatrix_x4(two, b_from + n * 8 * kSliceBytes);
                b[n][0] = two[0];
                b[n][1] = two[1];
                b[n + 1][0] = two[2];
                b[n + 1][1] = two[3];
            }
            CLARA_UNROLL
            for (int m = 0; m < 4; ++m) {
                uint32_t a[4];
                ldmatrix_x4(a, a_from + m * 16 * kSliceBytes);
                CLARA_UNROLL
                for (int n = 0; n < kRowTiles; ++n) Mma::multiply(sums[m][n], a, b[n]);
            }
        }
    }

    /// Ends a segment of codes: replaces their sums by dot products in float32 and adds these to
    /// the totals, if there are any.
    __device__ void combine() {
        if constexpr (kCodes) {
            CLARA_UNROLL
            for (int m = 0; m < 2; ++m) {
                CLARA_UNROLL
                for (int n = 0; n < kRowTiles; ++n) {
                    CLARA_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        float dot = dot_of_codes(sums[m][n][i], sums[m + 2][n][i]);
                        if (totals != nullptr) {
                            const int at = (m * kRowTiles + n) * 4 + i;
                            dot = totals[at * kTileThreads + threadIdx.x] += dot;
                        }
                        sums[m][n][i] = static_cast<int>(__float_as_uint(dot));
                    }
                }
            }
        }
    }

    /// Ends a segment of halves: adds their sums to the totals, of which there are none before the
    /// first.
    __device__ void flush(bool first) {
        if constexpr (!kCodes) {
            CLARA_UNROLL
            for (int i = 0; i < 16 * kRowTiles; ++i) {
                float& sum = sums[i / (4 * kRowTiles)][i / 4 % kRowTiles][i % 4];
                float& total = totals[i * kTileThreads + threadIdx.x];
                total = first ? sum : total + sum;
                sum = 0;
            }
        }
    }

    __device__ void add_totals() {
        if constexpr (!kCodes) {
            CLARA_UNROLL
            for (int i = 0; i < 16 * kRowTiles; ++i) {
                sums[i / (4 * kRowTiles)][i / 4 % kRowTiles][i % 4] +=
                    totals[i * kTileThreads + threadIdx.x];
            }
        }
    }

    __device__ void clear_totals() {
        if constexpr (kCodes) {
            for (int i = 0; i < 8 * kRowTiles; ++i) totals[i * kTileThreads + threadIdx.x] = 0;
        }
    }

    /// Whether any score has reached its threshold.
    __device__ bool compare(const TheLists& lists, int tile) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int column = warp % 2 * (kRows / 2) + lane % 4 * 2;
        bool any = false;
        CLARA_UNROLL
        for (int m = 0; m < kQueries / 32; ++m) {
            CLARA_UNROLL
            for (int h = 0; h < 2; ++h) {
                float dots[2 * kRowTiles];  // of line 16 m + 8 h + lane / 4 of the warp's part
                CLARA_UNROLL
                for (int j = 0; j < 2 * kRowTiles; ++j)
                    dots[j] = dot(sums[m][j / 2][2 * h + j % 2]);
                const int query = warp / 2 * (kQueries / 2) + m * 16 + h * 8 + lane / 4;
                any |= lists.compare(query, tile, dots,
                                     [&](int j) { return column + j / 2 * 8 + j % 2; });
            }
        }
        return any;
    }

    __device__ static float dot(float sum) { return sum; }
    __device__ static float dot(int combined) {
        return __uint_as_float(static_cast<unsigned>(combined));
    }
};

template <class Row, class Mma, int kRowTiles>
__global__ void __launch_bounds__(kTileThreads, kRowTiles == 8 ? 2 : 3)
    mma_queries(const ManyArguments a) {
#ifdef CLARA_TENSOR_CORES
    using Tile = MmaTile<Row, Mma, kRowTiles>;
    using Loader = typename Tile::Loader;
    CLARA_SHARED(shared);
    const int query_tile = blockIdx.x % a.query_tiles, list = blockIdx.x / a.query_tiles;
    const int lists_of_query = static_cast<int>(a.lists.count);
    const int slice_columns = kSliceBytes / 16 * Row::kVector;
    const int slices = static_cast<int>(a.prepared.columns / slice_columns) *
                       (Tile::kCodes ? 1 : a.prepared.planes);
    const int tiles = static_cast<int>(div_up(a.corpus.count, Tile::kRows));
    const bool segmented = Tile::kCodes && a.prepared.columns > kSegmentColumns;
    const bool cut = !Tile::kCodes && slices > kSegmentSlices;

    uint8_t* rest = shared + kStages * Loader::kBytes;
    Tile tile;
    tile.totals = segmented ? reinterpret_cast<float*>(rest) : nullptr;
    if (segmented) rest += 8 * kRowTiles * kTileThreads * sizeof(float);
    typename Tile::TheLists lists(a, rest, query_tile, blockIdx.x, list);
    static_assert(sizeof(Key) * Tile::kQueries * Tile::kRows >=
                  sizeof(float) * 16 * kRowTiles * kTileThreads);
    if (cut) tile.totals = reinterpret_cast<float*>(lists.waiting);
    lists.start();

    Loader loader(a, shared, int64_t{query_tile} * Tile::kQueries, list);
    for (int i = 0; i < kStages - 1; ++i) loader.load();
    int stage = 0;
    CLARA_NO_UNROLL
    for (int at = list; at < tiles; at += lists_of_query) {
        lists.begin_tile(at);
        tile.clear();
        if (segmented) tile.clear_totals();
        CLARA_NO_UNROLL
        for (int slice = 0; slice < slices; ++slice) {
            cp_async_wait<kStages - 2>();
            __syncthreads();  // the stage is there, and nobody reads the one before it
            loader.load();
            tile.multiply(shared + stage * Loader::kBytes);
            stage = stage + 1 == kStages ? 0 : stage + 1;
            if (segmented && (slice + 1) % (kSegmentColumns / kSliceBytes) == 0) {
                tile.combine();
                tile.clear();
            }
            if (cut && (slice + 1) % kSegmentSlices == 0) {
                tile.flush(slice + 1 == kSegmentSlices);
            }
        }
        tile.combine();
        if (cut) {
            tile.add_totals();
            __syncthreads();  // before keys take the totals' place
        }
        lists.end_tile(tile.compare(lists, at));
    }
    cp_async_wait<0>();
    lists.finish();
#endif
}

/// float32: 64 queries by 128 rows; a thread has every 8th query and every 16th row.
struct FloatTile {
    static constexpr int kQueries = 64;
    static constexpr int kRows = 128;
    static constexpr int kSegmentSlices = 64;  // 1,024 columns are summed on their own
    using Loader = TileLoader<Float32Row, kQueries, kRows>;
    using TheLists = TileLists<kQueries, kRows>;

    float sums[8][8];    // [queries, rows]
    float totals[8][8];  // of the segments before

    template <class Function>
    __device__ void for_each(const Function& function) {
        CLARA_UNROLL
        for (int i = 0; i < 8; ++i) {
            CLARA_UNROLL
            for (int j = 0; j < 8; ++j) function(i, j);
        }
    }

    __device__ void multiply(const uint8_t* stage) {
        const int query = threadIdx.x / 16, row = threadIdx.x % 16;
        const uint8_t* rows = stage + kQueries * kSliceBytes;
        CLARA_NO_UNROLL
        for (int piece = 0; piece < kSliceBytes / 16; ++piece) {
            float4 b[8];
            CLARA_UNROLL
            for (int j = 0; j < 8; ++j) {
                b[j] = *reinterpret_cast<const float4*>(rows + slice_offset(row + 16 * j, piece));
            }
            CLARA_UNROLL
            for (int i = 0; i < 8; ++i) {
                const float4 q =
                    *reinterpret_cast<const float4*>(stage + slice_offset(query + 8 * i, piece));
                CLARA_UNROLL
                for (int j = 0; j < 8; ++j) {
                    sums[i][j] = __fmaf_rn(q.x, b[j].x, sums[i][j]);
                    sums[i][j] = __fmaf_rn(q.y, b[j].y, sums[i][j]);
                    sums[i][j] = __fmaf_rn(q.z, b[j].z, sums[i][j]);
                    sums[i][j] = __fmaf_rn(q.w, b[j].w, sums[i][j]);
                }
            }
        }
    }
};

__global__ void __launch_bounds__(kTileThreads, 2) float_queries(const ManyArguments a) {
    using Tile = FloatTile;
    using Loader = Tile::Loader;
    CLARA_SHARED(shared);
    const int query_tile = blockIdx.x % a.query_tiles, list = blockIdx.x / a.query_tiles;
    const int lists_of_query = static_cast<int>(a.lists.count);
    const int slices = static_cast<int>(a.prepared.columns / (kSliceBytes / 4));
    const int tiles = static_cast<int>(div_up(a.corpus.count, Tile::kRows));
    Tile tile;
    Tile::TheLists lists(a, shared + kStages * Loader::kBytes, query_tile, blockIdx.x, list);
    lists.start();

    Loader loader(a, shared, int64_t{query_tile} * Tile::kQueries, list);
    for (int i = 0; i < kStages - 1; ++i) loader.load();
    int stage = 0;
    CLARA_NO_UNROLL
    for (int at = list; at < tiles; at += lists_of_query) {
        lists.begin_tile(at);
        tile.for_each([&](int i, int j) { tile.sums[i][j] = tile.totals[i][j] = 0; });
        CLARA_NO_UNROLL
        for (int slice = 0; slice < slices; ++slice) {
            cp_async_wait<kStages - 2>();
            __syncthreads();
            loader.load();
            tile.multiply(shared + stage * Loader::kBytes);
            stage = stage + 1 == kStages ? 0 : stage + 1;
            if ((slice + 1) % Tile::kSegmentSlices != 0) continue;
            tile.for_each([&](int i, int j) {
                tile.totals[i][j] += tile.sums[i][j];
                tile.sums[i][j] = 0;
            });
        }
        bool any = false;
        CLARA_UNROLL
        for (int i = 0; i < 8; ++i) {
            float dots[8];
            CLARA_UNROLL
            for (int j = 0; j < 8; ++j) dots[j] = tile.totals[i][j] + tile.sums[i][j];
            any |= lists.compare(threadIdx.x / 16 + 8 * i, at, dots,
                                 [](int j) { return threadIdx.x % 16 + 16 * j; });
        }
        lists.end_tile(any);
    }
    cp_async_wait<0>();
    lists.finish();
}

template <class Function>
auto with_kernel(DataType type, bool few_rows, const Function& function) {
    switch (type) {
        case DataType::float32:
            return function(float_queries);
        case DataType::float16:
            return function(few_rows ? mma_queries<Float16Row, Float16Mma, 4>
                                     : mma_queries<Float16Row, Float16Mma, 8>);
        case DataType::bfloat16:
            return function(few_rows ? mma_queries<Bfloat16Row, Bfloat16Mma, 4>
                                     : mma_queries<Bfloat16Row, Bfloat16Mma, 8>);
        default:
            return function(mma_queries<Int8Row, Int8Mma, 8>);
    }
}

}  // namespace

ManyPlan plan_many(DataType type, int64_t columns, int k, bool few_rows, bool lists_in_shared) {
    const bool halves = type == DataType::float32 || type == DataType::int8;
    ManyPlan plan{};
    plan.few_rows = few_rows && !halves;
    plan.tile_queries = halves ? 64 : 128;
    plan.tile_rows = plan.few_rows ? 64 : 128;
    const int lines = type == DataType::float32 ? 64 : 128;
    plan.shared = kStages * (lines + plan.tile_rows) * kSliceBytes +
                  (3 * plan.tile_queries + plan.tile_rows) * 4;
    if (type == DataType::int8 && columns > kSegmentColumns) plan.shared += 64 * kTileThreads * 4;
    if (lists_in_shared) plan.shared += k * plan.tile_queries * sizeof(Key);
    return plan;
}

int64_t many_blocks(DataType type, const ManyPlan& plan) {
    return with_kernel(type, plan.few_rows, [&](auto kernel) -> int64_t {
        return blocks_per_multiprocessor(kernel, kTileThreads, plan.shared) *
               int64_t{device_attribute(cudaDevAttrMultiProcessorCount)};
    });
}

void search_many(const ManyArguments& arguments, const ManyPlan& plan, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(arguments.lists.count * arguments.query_tiles));
    with_kernel(arguments.corpus.type, plan.few_rows, [&](auto kernel) {
        launch(kernel, grid, kTileThreads, plan.shared, stream, arguments);
    });
}

bool has_tensor_cores() {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, mma_queries<Bfloat16Row, Bfloat16Mma, 8>));
    return attributes.ptxVersion >= 80 && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
}

}  // namespace clara
