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

/// Bytes of a chunk of a packed query, never a power of two: those would share cache sets.
int64_t stride_of(const Chunks& chunks, DataType row_type, const Kernels& kernels) {
    const PanelKernels* panels = kernels.panels_of(row_type);
    const int64_t bytes = row_type == DataType::int8 ? kernels.int8_query_bytes(chunks.size)
                          : panels != nullptr ? panels->query_bytes(chunks.size)
                                              : chunks.size * static_cast<int64_t>(sizeof(float));
    return aligned(bytes) + kAlignment;
}

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
      stride_(stride_of(chunks_, row_type, kernels)),
      memory_(chunks_.count * (end - begin) * stride_),
      data_(memory_.data()),
      scales_(end - begin) {
    const PanelKernels* panels = kernels.panels_of(row_type);
    const double elements = static_cast<double>(count()) * queries.columns;
    const int64_t together = panels != nullptr ? kPanelQueries : 1;
    const int64_t pieces = (count() + together - 1) / together;
    for_each_part(pieces, useful_threads(elements, pieces, threads),
                  [&](int, int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i) {
                          panels != nullptr ? pack_group(i * together, kernels) : pack(i, kernels);
                      }
                  });
}

int64_t PackedQueries::value_bytes(DataType row_type, const Kernels& kernels) {
    constexpr int64_t kColumns = 64;
    const PanelKernels* panels = kernels.panels_of(row_type);
    return panels != nullptr ? panels->query_bytes(kColumns) / kColumns : sizeof(float);
}

double PackedQueries::inverse_norm_of(int64_t i, const Kernels& kernels) const {
    const float inverse = inverse_norm(queries_, begin_ + i, kernels);
    return inverse == kExtreme ? 1 / std::sqrt(squares_in_float64(queries_, begin_ + i)) : inverse;
}

void PackedQueries::pack_group(int64_t first, const Kernels& kernels) {
    const auto queries = static_cast<int>(std::min<int64_t>(kPanelQueries, count() - first));
    std::vector<float> values(queries * chunks_.size);
    const float* addresses[kPanelQueries];
    double factors[kPanelQueries];
    for (int i = 0; i < queries; ++i) {
        addresses[i] = values.data() + i * chunks_.size;
        const double inverse = inverse_norm_of(first + i, kernels);
        const bool usable = inverse > 0;
        factors[i] = usable ? std::exp2(std::ilogb(inverse)) : 0;
        scales_[first + i] = static_cast<float>(usable ? inverse / factors[i] : inverse);
    }
    for (int64_t c = 0; c < chunks_.count; ++c) {
        const int64_t length = chunks_.length(c);
        for (int i = 0; i < queries; ++i) {
            float* part = values.data() + i * chunks_.size;
            if (factors[i] == 0) {  // zeros, or what is not finite and scores NaN
                std::fill_n(part, length, 0.0f);
                continue;
            }
            load_row(queries_, begin_ + first + i, chunks_.begin(c), length, part);
            for (int64_t j = 0; j < length; ++j) part[j] = static_cast<float>(part[j] * factors[i]);
        }
        kernels.panels->pack(addresses, queries, length, data_ + (c * count() + first) * stride_);
    }
}

void PackedQueries::pack(int64_t i, const Kernels& kernels) {
    const double inverse = inverse_norm_of(i, kernels);
    if (std::isnan(inverse)) {
        scales_[i] = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    if (inverse == 0) return;  // packed as zeros
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
