#pragma once

#include <cstdint>

namespace clara {

constexpr int kPanelRows = 64;      // the most rows of a panel
constexpr int kPanelRowsUnit = 16;  // what their number is a multiple of
constexpr int kPanelQueries = 16;   // queries that are packed together

/// Work for a panel kernel, which multiplies bfloat16 rows as they are stored:
/// sums[i * sums_stride + j] += ⟨query i, row j⟩ over `columns` columns. Sums of rows up to the
/// next multiple of 16 are written as well, whatever they hold.
struct Panel {
    const char* queries;  // groups of kPanelQueries as PanelKernels::pack makes them
    int64_t group_stride;
    int query_count;
    const char* const* rows;  // of fewer than row_count, one is repeated
    int row_count;            // a multiple of kPanelRowsUnit
    int64_t columns;          // that are read of each row, exactly as many as queries were packed
    float* sums;
    int64_t sums_stride;
    const char* const* ahead;  // kPanelRows that are brought towards the cache meanwhile
};

/// What an instruction set offers that multiplies blocks of bfloat16 values with float32 sums.
struct PanelKernels {
    /// Bytes that `pack` writes for each query of `columns` columns.
    int64_t (*query_bytes)(int64_t columns);

    /// Packs up to kPanelQueries queries of `columns` float32 values. Each value is split into up
    /// to three bfloat16 values whose sum it is, so nothing is rounded.
    void (*pack)(const float* const* queries, int count, int64_t columns, char* out);

    /// Returns whether all sums are finite. Where they are not, an infinity may have become NaN.
    /// How a sum is rounded depends on its query, its row and `columns` alone.
    bool (*multiply)(const Panel& panel);
};

}  // namespace clara
