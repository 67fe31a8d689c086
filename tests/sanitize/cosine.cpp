// Compiled without a sanitizer: most of the time would go here.

#include "cosine.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace clara_test {

Cosine cosine(const std::vector<double>& query, const std::vector<double>& row, bool row_is_int8) {
    const double *a = query.data(), *b = row.data();
    double product = 0, query_squares = 0, row_squares = 0, largest = 0;
    for (size_t j = 0; j < query.size(); ++j) {
        product += a[j] * b[j];
        query_squares += a[j] * a[j];
        row_squares += b[j] * b[j];
        largest = std::max(largest, std::abs(a[j]));
    }
    const double norms = std::sqrt(query_squares) * std::sqrt(row_squares);
    if (!std::isfinite(norms)) return {std::numeric_limits<double>::quiet_NaN(), 0};
    if (norms == 0) return {0, 0};
    // Roundings of 2^-24 one after another: at most 1,023 columns in four lanes, and a few more.
    const auto columns = static_cast<double>(query.size());
    double bound = (std::min(columns, 1023.0) / 4 + 16) * 0x1p-24;
    // For int8 rows every column of a query is off by at most half a step.
    if (row_is_int8) bound += std::sqrt(columns / query_squares) * largest / 32639 / 2;
    return {product / norms, bound};
}

}  // namespace clara_test
