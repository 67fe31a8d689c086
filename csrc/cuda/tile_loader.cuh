#pragma once

#include "cuda/many_queries.cuh"

namespace clara {

constexpr int kTileThreads = 128;
constexpr int kSliceBytes = 64;  // of each row in a stage
constexpr int kStages = 4;

/// Where 16 bytes of a slice lie. The order of a row's four pieces depends on the row, so that
/// eight rows' pieces of one number are in different banks. It is the same for rows a multiple of 8
/// apart.
__device__ inline int slice_offset(int row, int piece) {
    return row * kSliceBytes + ((piece ^ (row >> 1 & 3)) << 4);
}

/// Brings slices of tiles into shared memory: kLines lines of queries, then kRows rows. The planes
/// of queries are multiplied one after the other by the same slice of rows, which is loaded for
/// each. Of codes both planes are in each slice, 32 queries of one and then of the other.
template <class Row, int kLines, int kRows>
class TileLoader {
public:
    static constexpr bool kCodes = Row::kVector == 16;
    static constexpr int kBytes = (kLines + kRows) * kSliceBytes;

    __device__ TileLoader(const ManyArguments& arguments, uint8_t* shared, int64_t first_query,
                          int first_tile)
        : a_(arguments), tile_(first_tile) {
        const int line = threadIdx.x / 4;
        piece_ = threadIdx.x % 4 * 16;
        to_ = shared + slice_offset(line, threadIdx.x % 4);
        queries_ = a_.prepared.data + (first_query + line) * a_.prepared.query_stride + piece_;
        const int64_t left = a_.query_count - first_query - line;
        queries_left_ = static_cast<int>(left < kLines ? left : kLines);
        start_tile();
    }

    /// Starts to load the next slice into the next stage.
    __device__ void load() {
        if (rows_left_ > -kRows) {
            load_queries();
            load_rows();
            advance();
        }
        cp_async_commit();
        stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    }

private:
    static constexpr int kApart = kTileThreads / 4;  // lines between two of a thread

    __device__ void start_tile() {
        const int line = threadIdx.x / 4;
        const int64_t row = int64_t{tile_} * kRows + line, left = a_.corpus.count - row;
        rows_ = a_.corpus.data + row * a_.corpus.stride;
        rows_left_ = left < kRows ? static_cast<int>(left > -kRows ? left : -kRows) : kRows;
        if (row - line >= a_.corpus.count) rows_left_ = -kRows;
    }

    __device__ void advance() {
        if (!kCodes && ++plane_ < a_.prepared.planes) return;
        plane_ = 0;
        offset_ += kSliceBytes;
        if (offset_ < a_.prepared.query_stride) return;
        offset_ = 0;
        tile_ += static_cast<int>(a_.lists.count);
        start_tile();
    }

    __device__ void load_queries() const {
        uint8_t* to = to_ + stage_ * kBytes;
        const uint8_t* from = queries_ + plane_ * a_.prepared.plane_stride + offset_;
        CLARA_UNROLL
        for (int i = 0; i < kLines / kApart; ++i) {
            const int line = kCodes ? i / 2 * kApart : i * kApart;
            int64_t apart = line * a_.prepared.query_stride;
            if (kCodes) apart += i % 2 * a_.prepared.plane_stride;
            const bool there = line < queries_left_;
            cp_async_16(to + i * kApart * kSliceBytes, there ? from + apart : a_.prepared.data,
                        there ? 16 : 0);
        }
    }

    __device__ void load_rows() const {
        uint8_t* to = to_ + stage_ * kBytes + kLines * kSliceBytes;
        const int offset = offset_ + piece_;
        if (!a_.corpus.aligned) return load_unaligned_rows(to, offset);
        const int left = a_.corpus.row_bytes<Row>() - offset;
        const int bytes = left >= 16 ? 16 : left > 0 ? left : 0;
        CLARA_UNROLL
        for (int i = 0; i < kRows / kApart; ++i) {
            const bool there = i * kApart < rows_left_ && bytes > 0;
            const uint8_t* from = rows_ + i * kApart * a_.corpus.stride + offset;
            cp_async_16(to + i * kApart * kSliceBytes, there ? from : a_.prepared.data,
                        there ? bytes : 0);
        }
    }

    __device__ void load_unaligned_rows(uint8_t* to, int offset) const {
        CLARA_NO_UNROLL
        for (int i = 0; i < kRows / kApart; ++i) {
            uint4 value = make_uint4(0, 0, 0, 0);
            if (i * kApart < rows_left_) {
                value = load_elements<Row>(rows_ + i * kApart * a_.corpus.stride, offset,
                                           a_.corpus.row_bytes<Row>());
            }
            *reinterpret_cast<uint4*>(to + i * kApart * kSliceBytes) = value;
        }
    }

    const ManyArguments& a_;
    uint8_t* to_;             // the thread's first 16 bytes in the first stage
    const uint8_t* queries_;  // where the thread's first line of queries begins
    const uint8_t* rows_;     // and its first row of the tile
    int queries_left_;        // from that line on, at most kLines
    int rows_left_;           // from that row on, at most kRows; -kRows after the last tile
    int piece_;               // of 64 bytes, the thread's
    int tile_;
    int offset_ = 0;  // of the slice in a row
    int plane_ = 0;
    int stage_ = 0;
};

}  // namespace clara
