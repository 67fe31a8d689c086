#pragma once

#include <cstdint>

#include "core/rows.hpp"

namespace clara {

/// Rows to search, and what is known of them.
struct Searched {
    Rows rows;
    const float* inverse_norms;  // as `inverse_norm` returns them; null has them computed
};

/// Some rows that are scored together.
struct RowBlock {
    static constexpr int kMost = 512;
    int count = 0;
    int64_t rows[kMost];
};

}  // namespace clara
