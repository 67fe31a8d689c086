#pragma once

#include <cstdint>
#include <vector>

#include "core/rows.hpp"
#include "core/simd/attention.hpp"
#include "core/simd/linear.hpp"
#include "core/simd/panel.hpp"
#include "core/simd/screen.hpp"
#include "core/simd/tile_work.hpp"

namespace clara {

constexpr int kFilterRows = 16;  // what the count of rows to filter is a multiple of

struct RowKernels;  // see core/elementwise

/// What one instruction set offers. No function may be called where the processor lacks it.
struct Kernels {
    const char* name;

    int tile_queries;       // the most that a tile kernel takes, for floating-point rows
    int tile_queries_int8;  // the same for int8 rows

    TileKernel float32;
    TileKernel widen_float32;  // this and the next two write Tile::copies, as float32
    TileKernel widen_float16;
    TileKernel widen_bfloat16;
    TileKernel int8;

    /// Sum of squares of `count` elements of a row of each DataType, in float32 but for int8, whose
    /// sum is exact for up to 2^16 elements.
    float (*squares[4])(const char* row, int64_t count);

    /// Bytes of a packed query for int8 rows of `columns` columns, and the packing of its values,
    /// which are within ±32639. The bytes are zero beforehand.
    int64_t (*int8_query_bytes)(int64_t columns);
    void (*pack_int8_query)(const int16_t* values, int64_t columns, char* out);

    /// scores[j] = sums[j] * scale * inverse_norms[j] for `count` rows, a multiple of kFilterRows.
    /// Writes to `found` the numbers j of scores at least `threshold`; returns how many.
    int (*filter)(const float* sums, float scale, const float* inverse_norms, int count,
                  float threshold, float* scores, uint8_t* found);

    const RowKernels* rows;  // of norms, gated activations and rotary embedding

    const PanelKernels* panels = nullptr;   // for bfloat16 rows, or null
    const ScreenKernels* screen = nullptr;  // for rows of floating point, or null

    const LinearKernels* linear = nullptr;  // for bfloat16, or null
    const LinearGradientKernels* linear_gradient = nullptr;
    const ThinProductKernels* thin_product = nullptr;
    const AttentionKernels* attention = nullptr;  // the same
    const AttentionGradientKernels* attention_gradient = nullptr;

    /// What multiplies rows of a type as a panel; null where tile kernels do.
    const PanelKernels* panels_of(DataType type) const {
        return type == DataType::bfloat16 ? panels : nullptr;
    }

    /// The tile kernel that reads rows of a type; all but those of float32 and int8 write
    /// Tile::copies.
    TileKernel reading(DataType type) const;
};

/// One for each instruction set of this build that this processor has, the plainest first.
const std::vector<const Kernels*>& available_kernels();

/// The last of the available ones, or the one that the environment variable CLARA_SIMD names.
/// Throws std::invalid_argument where that is not available.
const Kernels& kernels();

}  // namespace clara
