#include "core/packed_queries.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/inverse_norms.hpp"
#include "core/parallel.hpp"

namespace clara {
namespace {

constexpr int64_t kAlignment = 64;
constexpr double kInt16Steps = 32639;  // 127 · 256 + 127: its two bytes are within ±127

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

// At least 512 columns, at most 1,023, are as many as share a level-1 cache with enough queries and
// rows; int8 ones twice that, at most 2,047, beyond which 32-bit sums might overflow.
Chunks::Chunks(int64_t columns, DataType type) : columns(columns) {
    const int64_t least = type == DataType::int8 ? 1024 : 512;
    const int64_t wanted = std::max<int64_t>(1, columns / least);
    size = std::max<int64_t>(aligned((columns + wanted - 1) / wanted), kAlignment);
    count = (columns + size - 1) / size;
}

int64_t Chunks::length(int64_t chunk) const { return std::min(size, columns - chunk * size); }

PackedQueries::PackedQueries(const Rows& queries, int64_t begin, int64_t end, DataType row_type,
                             const Kernels& kernels, int threads)
    : queries_(queries),
      begin_(begin),
      end_(end),
      row_type_(row_type),
      chunks_(queries.columns, row_type),
      scales_(end - begin) {
    const int64_t bytes = row_type == DataType::int8
                              ? kernels.int8_query_bytes(chunks_.size)
                              : chunks_.size * static_cast<int64_t>(sizeof(float));
    stride_ = aligned(bytes) + kAlignment;  // never a power of two: those would share cache sets
    const int64_t total = chunks_.count * count() * stride_ + kAlignment;
    memory_ = std::make_unique<char[]>(total);
    void* address = memory_.get();
    size_t space = total;
    data_ = static_cast<char*>(std::align(kAlignment, 1, address, space));
    const double elements = static_cast<double>(count()) * queries.columns;
    for_each_part(count(), useful_threads(elements, count(), threads),
                  [&](int, int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i) pack(i, kernels);
                  });
}

void PackedQueries::pack(int64_t i, const Kernels& kernels) {
    double inverse = inverse_norm(queries_, begin_ + i, kernels);
    if (std::isnan(inverse)) {
        scales_[i] = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    if (inverse == 0) return;  // packed as zeros
    if (inverse == kExtreme) inverse = 1 / std::sqrt(squares_in_float64(queries_, begin_ + i));
    std::vector<float> values(chunks_.columns);
    load_row(queries_, begin_ + i, 0, chunks_.columns, values.data());
    if (row_type_ == DataType::int8) {
        scales_[i] = pack_int16(i, values, kernels);
        return;
    }
    scales_[i] = 1;
    for (int64_t c = 0; c < chunks_.count; ++c) {
        auto* unit = reinterpret_cast<float*>(data_ + (c * count() + i) * stride_);
        const float* part = values.data() + chunks_.begin(c);
        const int64_t length = chunks_.length(c);
        for (int64_t j = 0; j < length; ++j) unit[j] = static_cast<float>(part[j] * inverse);
    }
}

float PackedQueries::pack_int16(int64_t i, const std::vector<float>& values,
                                const Kernels& kernels) {
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    const double factor = kInt16Steps / largest;
    std::vector<int16_t> steps(chunks_.size);
    double squares = 0;
    for (int64_t c = 0; c < chunks_.count; ++c) {
        const float* part = values.data() + chunks_.begin(c);
        const int64_t length = chunks_.length(c);
        for (int64_t j = 0; j < length; ++j) {
            steps[j] = static_cast<int16_t>(std::lrint(part[j] * factor));
            squares += static_cast<double>(steps[j]) * steps[j];
        }
        kernels.pack_int8_query(steps.data(), length, data_ + (c * count() + i) * stride_);
    }
    return static_cast<float>(1 / std::sqrt(squares));
}

float PackedQueries::cosine(int64_t i, const Rows& rows, int64_t row) const {
    constexpr int64_t kPart = 1024;
    float query[kPart], other[kPart];
    double product = 0, query_squares = 0, row_squares = 0;
    for (int64_t begin = 0; begin < rows.columns; begin += kPart) {
        const int64_t length = std::min(kPart, rows.columns - begin);
        load_row(queries_, begin_ + i, begin, length, query);
        load_row(rows, row, begin, length, other);
        for (int64_t j = 0; j < length; ++j) {
            product += static_cast<double>(query[j]) * other[j];
            query_squares += static_cast<double>(query[j]) * query[j];
            row_squares += static_cast<double>(other[j]) * other[j];
        }
    }
    const double norms = std::sqrt(query_squares) * std::sqrt(row_squares);
    return norms == 0 ? 0.0f : static_cast<float>(product / norms);
}

}  // namespace clara
