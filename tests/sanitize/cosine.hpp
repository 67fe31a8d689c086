#pragma once

#include <vector>

namespace clara_test {

/// In float64, with how far a computed score may be from it.
struct Cosine {
    double value, bound;
};

Cosine cosine(const std::vector<double>& query, const std::vector<double>& row, bool row_is_int8);

}  // namespace clara_test
