#include "core/inverse_norms.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.hpp"

namespace clara {
namespace {

constexpr int64_t kChunk = 1024;

}  // namespace

double squares_in_float64(const Rows& rows, int64_t index) {
    float values[kChunk];
    double sum = 0;
    for (int64_t begin = 0; begin < rows.columns; begin += kChunk) {
        const int64_t count = std::min(kChunk, rows.columns - begin);
        load_row(rows, index, begin, count, values);
        for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
    }
    return sum;
}

float inverse_norm(const Rows& rows, int64_t index, const Kernels& kernels) {
    const auto squares = kernels.squares[static_cast<int>(rows.type)];
    const char* row = rows.row(index);
    double sum = 0;
    for (int64_t begin = 0; begin < rows.columns; begin += kChunk) {
        const int64_t count = std::min(kChunk, rows.columns - begin);
        sum += squares(row + begin * item_size(rows.type), count);
    }
    const bool safe = sum > 0x1p-100 && sum < 0x1p100;  // no square overflowed, none that counts
    if (!safe) sum = squares_in_float64(rows, index);   // vanished; false for NaN too
    if (sum == 0) return 0;
    if (!std::isfinite(sum)) return std::numeric_limits<float>::quiet_NaN();
    const double norm = std::sqrt(sum);
    if (norm < 0x1p-80 || norm > 0x1p80) return kExtreme;
    return static_cast<float>(1 / norm);
}

void inverse_norms(const Rows& rows, int threads, float* out) {
    const Kernels& used = kernels();
    const int parts =
        useful_threads(static_cast<double>(rows.count) * rows.columns, rows.count, threads);
    for_each_part(rows.count, parts, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = inverse_norm(rows, i, used);
    });
}

}  // namespace clara
