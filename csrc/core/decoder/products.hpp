#pragma once

#include <cstdint>
#include <vector>

#include "core/packed_queries.hpp"
#include "core/rows.hpp"
#include "core/simd/kernels.hpp"

namespace clara {

/// `W x + bias + scaling · B (A x)`.
struct LinearLayer {
    Rows weight;              // W [outputs, inputs]
    const float* row_scales;  // [outputs] of an int8 weight, else null
    const float* bias;        // [outputs] or null
    Rows down, up;            // A [r, inputs], B [outputs, r]; of count 0 without an adapter
    float scaling;

    bool adapted() const { return down.count > 0; }
};

/// Types of rows that need inputs in a layout of their own, where there are any.
struct RowTypes {
    bool int8, bfloat16;
};

/// A few vectors that matrices are multiplied with, in the layouts that kernels read.
class Inputs {
public:
    /// `types`: what rows are to be multiplied with them, besides others.
    Inputs(int64_t count, int64_t columns, RowTypes types, const Kernels& kernels);

    int64_t count() const { return count_; }
    int64_t columns() const { return columns_; }
    float* row(int64_t i) { return memory_.data() + first_ + i * stride_; }
    const float* row(int64_t i) const { return memory_.data() + first_ + i * stride_; }

    /// Packs the values, once they are written: for int8 rows as multiples of each vector's largest
    /// magnitude / 32639, for bfloat16 rows as panel kernels read them.
    void written() { written(columns_); }
    /// Packs the first `columns` values, for rows of so many columns and no others: how many there
    /// are decides where kernels find the parts of a packed value.
    void written(int64_t columns);

    /// What multiplies rows of a type as panels; null where tile kernels do.
    const PanelKernels* panels_of(DataType rows) const {
        return rows == DataType::bfloat16 ? panels_ : nullptr;
    }
    const Chunks& panel_chunks() const { return panel_chunks_; }
    /// All inputs, for a chunk of columns.
    const char* panel(int64_t chunk) const {
        return panel_.data() + panel_first_ + chunk * count_ * panel_stride_;
    }
    int64_t panel_group_stride() const { return kPanelQueries * panel_stride_; }

    /// What a tile kernel reads of inputs from `first` on, from a column on where a chunk begins:
    /// any multiple of 16, for int8 rows one of int8_chunk().
    const char* from(DataType rows, int64_t column, int64_t first) const;
    int64_t stride(DataType rows) const;
    int64_t int8_chunk() const { return int8_chunks_.size; }

    /// What sums of products with int8 rows are to be multiplied by.
    float int8_scale(int64_t i) const { return scales_[i]; }

private:
    void pack_int8(int64_t i, int64_t columns);
    void pack_panels(int64_t columns);

    int64_t count_, columns_, stride_;  // in values
    bool is_int8_;
    const Kernels& kernels_;
    const PanelKernels* panels_;  // for bfloat16 rows, or null
    std::vector<float> memory_;   // zero behind each vector
    int64_t first_;               // place in `memory_`, aligned to 64 bytes
    Chunks int8_chunks_;
    int64_t int8_stride_;  // in bytes, of a vector in a chunk
    std::vector<char> int8_;
    std::vector<int16_t> steps_;
    std::vector<float> scales_;
    Chunks panel_chunks_;
    int64_t panel_stride_;  // in bytes, of a vector in a chunk
    std::vector<char> panel_;
    int64_t panel_first_ = 0;  // place in `panel_`, aligned to 64 bytes
};

/// Multiplies matrices with inputs, some rows at a time. Of one thread.
class Multiplier {
public:
    /// For `inputs` vectors, and adapters of at most rank `rank` and these types.
    Multiplier(int64_t inputs, int64_t rank, RowTypes types, const Kernels& kernels);

    static constexpr int64_t kBlock = kPanelRows;  // rows that are multiplied with all inputs

    /// sums[i * kBlock + j] = ⟨input i, row first + j⟩ for up to kBlock rows before `end`; the rows
    /// behind them are brought towards the cache.
    void multiply(const Rows& rows, const float* row_scales, int64_t first, int64_t end,
                  const Inputs& inputs, float* sums);

    /// Calls store(i, row, value) with the products of all inputs and all rows of a matrix.
    template <class Store>
    void each(const Rows& rows, const Inputs& inputs, Store store) {
        for (int64_t first = 0; first < rows.count; first += kBlock) {
            multiply(rows, nullptr, first, rows.count, inputs, sums_.data());
            each_of_block(first, rows.count, inputs.count(),
                          [&](int64_t i, int64_t j, int64_t at) { store(i, j, sums_[at]); });
        }
    }

    /// Calls store(i, row, value) with `layer`'s outputs [begin, end) for all inputs.
    template <class Store>
    void apply(const LinearLayer& layer, const Inputs& inputs, int64_t begin, int64_t end,
               Store store) {
        if (begin >= end) return;
        if (layer.adapted()) down(layer.down, inputs);
        for (int64_t first = begin; first < end; first += kBlock) {
            multiply(layer.weight, layer.row_scales, first, end, inputs, sums_.data());
            if (layer.adapted()) multiply(layer.up, nullptr, first, end, thin_, thin_sums_.data());
            each_of_block(first, end, inputs.count(), [&](int64_t i, int64_t j, int64_t at) {
                float value = sums_[at];
                if (layer.adapted()) value += layer.scaling * thin_sums_[at];
                if (layer.bias != nullptr) value += layer.bias[j];
                store(i, j, value);
            });
        }
    }

private:
    template <class Visit>
    static void each_of_block(int64_t first, int64_t end, int64_t inputs, Visit visit) {
        const int64_t last = first + kBlock < end ? first + kBlock : end;
        for (int64_t i = 0; i < inputs; ++i) {
            for (int64_t j = first; j < last; ++j) visit(i, j, i * kBlock + j - first);
        }
    }

    /// `A x`. Every thread computes it for itself: A is small, and waiting for others costs more.
    void down(const Rows& rows, const Inputs& inputs);

    void multiply_tiles(const Rows& rows, int64_t first, int64_t end, const Inputs& inputs,
                        float* sums);
    void multiply_panels(const Rows& rows, int64_t first, int64_t end, const Inputs& inputs,
                         float* sums);

    const Kernels& kernels_;
    std::vector<float> sums_, thin_sums_;
    std::vector<float> again_;  // sums of tile kernels where those of panels are not finite
    std::vector<float> wide_;   // four rows as float32, a chunk of each
    Inputs thin_;               // A x
};

}  // namespace clara
