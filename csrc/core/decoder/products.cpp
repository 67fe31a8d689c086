#include "core/decoder/products.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace clara {
namespace {

constexpr int64_t kLine = kCacheLine / sizeof(float);  // values
constexpr float kInt16Steps = 32639;                   // 127 · 256 + 127: its bytes are within ±127

// Columns that are multiplied at a time. Where several tiles of inputs share rows, both had better
// stay in the first-level cache.
constexpr int64_t kMostChunk = 1024, kSmallChunk = 256;
constexpr int64_t kWideStride = kMostChunk + kLine;

constexpr int64_t kPanelInputs = 5;  // from so many on panels of bfloat16 rows are faster

int64_t whole_lines(int64_t values) { return (values + kLine - 1) / kLine * kLine; }

/// Values from an address to the next cache line.
int64_t behind_line(const float* address) {
    const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) / sizeof(float));
    return whole_lines(place) - place;
}

}  // namespace

Inputs::Inputs(int64_t count, int64_t columns, RowTypes types, const Kernels& kernels)
    : count_(count),
      columns_(columns),
      stride_(whole_lines(columns) + kLine),  // never a power of two: those would share cache sets
      is_int8_(types.int8),
      kernels_(kernels),
      panels_(types.bfloat16 && count >= kPanelInputs ? kernels.panels : nullptr),
      memory_(count * stride_ + kLine),
      first_(behind_line(memory_.data())),
      int8_chunks_(columns, DataType::int8),
      int8_stride_(whole_lines(kernels.int8_query_bytes(int8_chunks_.size)) + kCacheLine),
      panel_chunks_(columns, DataType::bfloat16),
      panel_stride_(panels_ != nullptr ? panels_->query_bytes(panel_chunks_.size) : 0) {
    if (panels_ != nullptr) {
        panel_.resize(panel_chunks_.count * count_ * panel_stride_ + kCacheLine);
        const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(panel_.data()));
        panel_first_ = (kCacheLine - place % kCacheLine) % kCacheLine;
    }
    if (!is_int8_) return;
    int8_.resize(int8_chunks_.count * count_ * int8_stride_);
    steps_.resize(int8_chunks_.size);
    scales_.resize(count_);
}

void Inputs::written(int64_t columns) {
    if (panels_ != nullptr) pack_panels(columns);
    if (!is_int8_) return;
    std::fill(int8_.begin(), int8_.end(), 0);
    for (int64_t i = 0; i < count_; ++i) pack_int8(i, columns);
}

void Inputs::pack_int8(int64_t i, int64_t columns) {
    const float* values = row(i);
    float largest = 0;
    bool finite = true;
    for (int64_t j = 0; j < columns; ++j) {
        largest = std::max(largest, std::abs(values[j]));
        finite = finite && std::isfinite(values[j]);
    }
    scales_[i] = finite ? largest / kInt16Steps : std::numeric_limits<float>::quiet_NaN();
    const double factor = finite && largest > 0 ? kInt16Steps / static_cast<double>(largest) : 0;
    if (factor == 0) return;  // packed as zeros
    for (int64_t c = 0; c < int8_chunks_.count && int8_chunks_.begin(c) < columns; ++c) {
        const float* part = values + int8_chunks_.begin(c);
        const int64_t length = std::min(int8_chunks_.size, columns - int8_chunks_.begin(c));
        for (int64_t j = 0; j < length; ++j) {
            steps_[j] = static_cast<int16_t>(std::lrint(part[j] * factor));
        }
        kernels_.pack_int8_query(steps_.data(), length,
                                 int8_.data() + (c * count_ + i) * int8_stride_);
    }
}

void Inputs::pack_panels(int64_t columns) {
    for (int64_t c = 0; c < panel_chunks_.count && panel_chunks_.begin(c) < columns; ++c) {
        const int64_t length = std::min(panel_chunks_.size, columns - panel_chunks_.begin(c));
        for (int64_t first = 0; first < count_; first += kPanelQueries) {
            const int64_t count = std::min<int64_t>(kPanelQueries, count_ - first);
            const float* values[kPanelQueries];
            for (int64_t i = 0; i < count; ++i) values[i] = row(first + i) + panel_chunks_.begin(c);
            panels_->pack(values, static_cast<int>(count), length,
                          panel_.data() + panel_first_ + (c * count_ + first) * panel_stride_);
        }
    }
}

const char* Inputs::from(DataType rows, int64_t column, int64_t first) const {
    if (rows != DataType::int8) return reinterpret_cast<const char*>(row(first) + column);
    return int8_.data() + (column / int8_chunks_.size * count_ + first) * int8_stride_;
}

int64_t Inputs::stride(DataType rows) const {
    return rows == DataType::int8 ? int8_stride_ : stride_ * static_cast<int64_t>(sizeof(float));
}

Multiplier::Multiplier(int64_t inputs, int64_t rank, RowTypes types, const Kernels& kernels)
    : kernels_(kernels),
      sums_(inputs * kBlock),
      thin_sums_(inputs * kBlock),
      again_(kernels.panels != nullptr && inputs >= kPanelInputs ? inputs * kBlock : 0),
      wide_(kTileRows * kWideStride),
      thin_(inputs, rank, {false, types.bfloat16}, kernels) {}

void Multiplier::multiply(const Rows& rows, const float* row_scales, int64_t first, int64_t end,
                          const Inputs& inputs, float* sums) {
    if (inputs.panels_of(rows.type) != nullptr) {
        multiply_panels(rows, first, end, inputs, sums);
        return;
    }
    multiply_tiles(rows, first, end, inputs, sums);
    if (rows.type != DataType::int8) return;
    const int64_t last = std::min(first + kBlock, end);
    for (int64_t i = 0; i < inputs.count(); ++i) {
        for (int64_t row = first; row < last; ++row) {
            sums[i * kBlock + row - first] *= inputs.int8_scale(i) * row_scales[row];
        }
    }
}

void Multiplier::multiply_panels(const Rows& rows, int64_t first, int64_t end, const Inputs& inputs,
                                 float* sums) {
    const Chunks& chunks = inputs.panel_chunks();
    const int64_t item = item_size(rows.type), most = inputs.count() * kBlock;
    std::fill_n(sums, most, 0.0f);
    Panel panel{};
    panel.group_stride = inputs.panel_group_stride();
    panel.query_count = static_cast<int>(inputs.count());
    const int64_t count = std::min(kBlock, end - first);
    panel.row_count =
        static_cast<int>((count + kPanelRowsUnit - 1) / kPanelRowsUnit * kPanelRowsUnit);
    panel.sums = sums;
    panel.sums_stride = kBlock;
    const char *addresses[kPanelRows], *ahead[kPanelRows];
    panel.rows = addresses;
    panel.ahead = ahead;
    bool finite = true;
    for (int64_t c = 0; c < chunks.count && chunks.begin(c) < rows.columns; ++c) {
        panel.queries = inputs.panel(c);
        panel.columns = std::min(chunks.size, rows.columns - chunks.begin(c));  // as packed
        const bool is_last = chunks.begin(c) + chunks.size >= rows.columns;
        for (int64_t j = 0; j < kPanelRows; ++j) {
            const int64_t next = std::min(first + j + (is_last ? kBlock : 0), end - 1);
            addresses[j] = rows.row(std::min(first + j, end - 1)) + chunks.begin(c) * item;
            ahead[j] = rows.row(next) + (is_last ? 0 : chunks.begin(c + 1)) * item;
        }
        finite &= kernels_.panels->multiply(panel);
    }
    if (finite) return;
    // Tile kernels tell infinity from NaN, which a value in several parts may not.
    multiply_tiles(rows, first, end, inputs, again_.data());
    for (int64_t i = 0; i < most; ++i) {
        if (!std::isfinite(sums[i])) sums[i] = again_[i];
    }
}

void Multiplier::multiply_tiles(const Rows& rows, int64_t first, int64_t end, const Inputs& inputs,
                                float* sums) {
    const int64_t count = inputs.count(), item = item_size(rows.type);
    const bool is_int8 = rows.type == DataType::int8;
    const int64_t most = is_int8 ? kernels_.tile_queries_int8 : kernels_.tile_queries;
    const int64_t tiles = (count + most - 1) / most;
    const TileKernel kernel = kernels_.reading(rows.type);
    const bool widens = kernel != kernels_.float32 && !is_int8;
    const int64_t chunk = is_int8 ? inputs.int8_chunk() : tiles > 1 ? kSmallChunk : kMostChunk;
    const int64_t last = std::min(first + kBlock, end);
    std::fill_n(sums, count * kBlock, 0.0f);
    Tile tile{};
    tile.query_stride = inputs.stride(rows.type);
    tile.sums_stride = kBlock;
    for (int j = 0; j < kTileRows; ++j) {
        tile.copies[j] = reinterpret_cast<char*>(wide_.data() + j * kWideStride);
    }
    for (int64_t column = 0; column < rows.columns; column += chunk) {
        tile.columns = std::min(chunk, rows.columns - column);
        for (int64_t row = first; row < last; row += kTileRows) {
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t begin = count * t / tiles;
                tile.query_count = static_cast<int>(count * (t + 1) / tiles - begin);
                tile.queries = inputs.from(rows.type, column, begin);
                tile.sums = sums + begin * kBlock + row - first;
                // Each tile brings its share of the rows that come next.
                const int64_t share = kTileRows * t / tiles;
                const int64_t share_end = kTileRows * (t + 1) / tiles;
                for (int j = 0; j < kTileRows; ++j) {
                    const int64_t ahead = std::min(row + kTileRows + share + j, end - 1);
                    tile.rows[j] = widens && t > 0
                                       ? tile.copies[j]
                                       : rows.row(std::min(row + j, end - 1)) + column * item;
                    tile.ahead[j] = share + j < share_end ? rows.row(ahead) + column * item
                                                          : tile.queries;  // is in the cache
                }
                (widens && t > 0 ? kernels_.float32 : kernel)(tile);
            }
        }
    }
}

void Multiplier::down(const Rows& rows, const Inputs& inputs) {
    each(rows, inputs, [&](int64_t i, int64_t j, float value) { thin_.row(i)[j] = value; });
    // Behind the values lie those of an adapter of higher rank, which tile kernels might read.
    for (int64_t i = 0; i < inputs.count(); ++i) {
        std::fill(thin_.row(i) + rows.count, thin_.row(i) + whole_lines(rows.count), 0.0f);
    }
    thin_.written(rows.count);
}

}  // namespace clara
