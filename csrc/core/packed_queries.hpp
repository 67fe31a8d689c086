#pragma once

#include <cstdint>
#include <vector>

#include "core/rows.hpp"
#include "core/simd/kernels.hpp"
#include "core/zeroed_memory.hpp"

namespace clara {

/// Columns are summed chunk by chunk. Where chunks begin depends on the number of columns and on
/// whether rows are int8, on nothing else: it decides how a sum is rounded.
struct Chunks {
    Chunks(int64_t columns, DataType type);

    int64_t columns;
    int64_t size;  // of each but the last, a multiple of 64
    int64_t count;

    int64_t begin(int64_t chunk) const { return chunk * size; }
    int64_t length(int64_t chunk) const;
};

/// Where packed queries are: for each chunk, its part of one query after another.
struct QueryLayout {
    int64_t count;
    Chunks chunks;
    int64_t stride;    // bytes from a query to the next
    const char* data;  // aligned to 64 bytes

    const char* chunk(int64_t chunk) const { return data + chunk * count * stride; }
};

/// Some consecutive queries in the layout that kernels read: for each chunk, its part of one query
/// after another, or of one group of kPanelQueries after another for panels.
///
/// For floating-point rows queries are scaled to norm 1 in float64 and rounded to float32; for
/// panels they are scaled by a power of two, which rounds nothing. For int8 rows they are rounded
/// to multiples of the largest magnitude / 32639.
class PackedQueries {
public:
    PackedQueries(const Rows& queries, int64_t begin, int64_t end, DataType row_type,
                  const Kernels& kernels, int threads);

    /// Most bytes of a packed value.
    static int64_t value_bytes(DataType row_type, const Kernels& kernels);

    int64_t count() const { return end_ - begin_; }
    QueryLayout layout() const { return {count(), chunks_, stride_, data_}; }
    const Chunks& chunks() const { return chunks_; }
    const char* chunk(int64_t chunk) const { return data_ + chunk * count() * stride_; }
    int64_t stride() const { return stride_; }

    /// What sums of products with query `i` are to be multiplied by; NaN if it is not finite.
    float scale(int64_t i) const { return scales_[i]; }

    /// The cosine of query `i` and a row in float64, of the values as they were before packing.
    float cosine(int64_t i, const Rows& rows, int64_t row) const;

private:
    /// 1/|query|; 0 for zeros, NaN for what is not finite.
    double inverse_norm_of(int64_t i, const Kernels& kernels) const;
    void pack(int64_t i, const Kernels& kernels);
    float pack_int16(int64_t i, const std::vector<float>& values, const Kernels& kernels);
    void pack_group(int64_t first, const Kernels& kernels);

    Rows queries_;
    int64_t begin_, end_;
    DataType row_type_;
    Chunks chunks_;
    int64_t stride_;
    ZeroedMemory memory_;
    char* data_;
    std::vector<float> scales_;
};

}  // namespace clara
