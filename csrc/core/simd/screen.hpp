#pragma once

#include <cstdint>

#include "core/rows.hpp"
#include "core/simd/tile_work.hpp"

namespace clara {

constexpr int kScreenQueries = 16;  // of a group, which are packed together
constexpr int kScreenGroups = 4;    // the most groups that are multiplied at a time
constexpr int kScreenRows = 24;     // rows that are multiplied at a time

/// Work of kScreenRows rows of bfloat16 values and up to kScreenGroups groups of queries:
/// sums[j * sums_stride + i] += ⟨query i, row j⟩ over `steps` pairs of columns. Queries are packed
/// with, for each pair of columns, these two bfloat16 values of one query after another.
struct ScreenTile {
    const char* queries;
    int groups;
    const char* rows;
    int64_t row_stride;  // bytes
    int64_t steps;
    float* sums;
    int64_t sums_stride;
    const char* const* ahead;  // lines that are brought towards the cache meanwhile,
    int64_t ahead_count;       // or as many of them as there are steps for
};

/// Work of kTileRows products of one packed query with one row each:
/// sums[j] += ⟨query, rows[j]⟩ over `columns` columns, which are read exactly of rows.
struct OneQuery {
    const char* query;  // float32
    const char* rows[kTileRows];
    int64_t columns;
    float* sums;  // kTileRows
};

/// What an instruction set offers that multiplies bfloat16 values faster than float32 ones:
/// products of rounded queries and rows tell which few of the exact products are worth computing.
struct ScreenKernels {
    void (*multiply)(const ScreenTile& tile);

    /// For rows of float32 and float16, writes each value as the nearest bfloat16 one; returns the
    /// sum of the squares of what that changed, itself computed in float32.
    float (*round[2])(const char* values, int64_t count, char* out);

    /// Writes to `found` the numbers i of scores sums[i] * inverse_norm of at least floors[i], for
    /// `count` queries, a multiple of kScreenQueries; returns how many.
    int (*filter)(const float* sums, float inverse_norm, const float* floors, int count,
                  uint16_t* found);

    /// For each DataType of floating point, adds to the sums exactly what the tile kernels of the
    /// same instruction set add, bit for bit.
    void (*exact[3])(const OneQuery& work);
};

}  // namespace clara
