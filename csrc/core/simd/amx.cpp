// AMX: a register holds a tile of 16 rows of 32 bfloat16 values, as they are stored, and an
// instruction multiplies it with a tile of 16 queries. Sums are float32. Like every file here it
// instantiates nothing of the standard library; see tile.hpp.

#include <immintrin.h>

#include <cstdint>

#include "core/simd/kernels.hpp"
#include "core/simd/panel.hpp"

namespace clara {
namespace {

constexpr int64_t kSide = 16;  // rows of a tile
constexpr int64_t kBlocks = kPanelRows / kSide;
constexpr int64_t kStep = 32;  // bfloat16 values in a row of a tile
constexpr int64_t kStepBytes = 2 * kStep;
constexpr int kMostParts = 3;  // bfloat16 values that make up a float32 value
constexpr int64_t kTileBytes = kSide * kStepBytes;
constexpr int64_t kHeader = 64;  // bytes before a group's tiles: the number of its parts
constexpr int kNan = 0x81, kNotFinite = 0x99;  // classes of values
static_assert(kPanelQueries == kSide && kPanelRowsUnit == kSide && kPanelRows == 4 * kSide);

__m512i bits_of(__m512 values) { return _mm512_castps_si512(values); }
__m512 floats_of(__m512i bits) { return _mm512_castsi512_ps(bits); }

/// The values are 16 rows of 16; afterwards vector i holds column i.
void transpose(__m512i (&rows)[kSide]) {
    __m512i pairs[kSide];
    for (int64_t i = 0; i < kSide; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        const __m512i b = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]);
        const __m512i d = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
        pairs[i] = _mm512_unpacklo_epi64(a, c);
        pairs[i + 1] = _mm512_unpackhi_epi64(a, c);
        pairs[i + 2] = _mm512_unpacklo_epi64(b, d);
        pairs[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Now a quarter of pairs[4 * i + j] holds column j of its four, of rows 4 * i to 4 * i + 3.
    for (int j = 0; j < 4; ++j) {
        const __m512i a = _mm512_shuffle_i32x4(pairs[j], pairs[4 + j], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(pairs[8 + j], pairs[12 + j], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(pairs[j], pairs[4 + j], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(pairs[8 + j], pairs[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        rows[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

/// The upper halves of 32-bit values, in order.
__m512i upper_halves(__m512i first, __m512i second) {
    alignas(64) static constexpr uint16_t kOdd[kStep] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                         23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                         45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(first, _mm512_load_si512(kOdd), second);
}

/// The nearest value whose lower 16 bits are zero, but none beyond the largest.
__m512i round_to_bfloat16(__m512 values, __mmask16 finite) {
    const __m512i bits = bits_of(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i up = _mm512_mask_add_epi32(bits, finite, bits, half);
    const __mmask16 beyond = _mm512_mask_fpclass_ps_mask(finite, floats_of(up), kNotFinite);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return _mm512_and_si512(_mm512_mask_mov_epi32(up, beyond, bits), upper);
}

/// A float32 value as the sum of bfloat16 values, each of which is nearest to what is left. What is
/// not finite has one part.
struct Parts {
    explicit Parts(__m512 values) {
        const __mmask16 nan = _mm512_fpclass_ps_mask(values, kNan);
        const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(values, kNotFinite));
        part[0] = round_to_bfloat16(values, finite);
        __m512 rest = _mm512_maskz_sub_ps(finite, values, floats_of(part[0]));
        part[0] = _mm512_mask_or_epi32(part[0], nan, part[0], _mm512_set1_epi32(1 << 22));
        part[1] = round_to_bfloat16(rest, finite);
        rest = _mm512_sub_ps(rest, floats_of(part[1]));
        part[2] = bits_of(rest);
    }

    __m512i part[kMostParts];
};

int64_t steps_of(int64_t columns) { return (columns + kStep - 1) / kStep; }

int64_t query_bytes(int64_t columns) {
    return kHeader + steps_of(columns) * kMostParts * kStepBytes;
}

/// A packed group of `count` queries: the header, and for each part a tile of every 32 columns. A
/// row of a tile has two consecutive values of one query after another.
void pack(const float* const* queries, int count, int64_t columns, char* out) {
    const auto chosen = static_cast<__mmask16>((1u << count) - 1);
    const int64_t tile_bytes = 4 * kSide * count, part_bytes = steps_of(columns) * tile_bytes;
    __m512i used[kMostParts] = {};
    char* tile = out + kHeader;
    for (int64_t column = 0; column < columns; column += kStep, tile += tile_bytes) {
        const int64_t left = columns - column;
        const auto mask = static_cast<uint32_t>(left >= kStep ? ~0u : (1u << left) - 1);
        __m512i parts[kMostParts][kSide] = {};
        for (int i = 0; i < count; ++i) {
            const float* from = queries[i] + column;
            const Parts first(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from));
            const auto upper_mask = static_cast<__mmask16>(mask >> 16);
            const Parts second(_mm512_maskz_loadu_ps(upper_mask, from + 16));
            for (int p = 0; p < kMostParts; ++p) {
                parts[p][i] = upper_halves(first.part[p], second.part[p]);
                used[p] = _mm512_or_si512(used[p], parts[p][i]);
            }
        }
        for (int p = 0; p < kMostParts; ++p) {
            transpose(parts[p]);
            for (int64_t row = 0; row < kSide; ++row) {
                char* to = tile + p * part_bytes + 4 * row * count;
                _mm512_mask_storeu_epi32(to, chosen, parts[p][row]);
            }
        }
    }
    // Products with parts that are zero would change no sum.
    int32_t parts = 1;
    for (int p = 1; p < kMostParts; ++p) {
        if (_mm512_test_epi32_mask(used[p], used[p]) != 0) parts = p + 1;
    }
    __builtin_memcpy(out, &parts, sizeof(parts));
}

/// Makes 16 × 16 sums of tiles 0 to 3, `width` queries of 4 to 6, and 16 rows of 7.
void configure(int64_t width) {
    struct alignas(64) {
        uint8_t palette = 1, first_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } configuration;
    for (int tile = 0; tile < 8; ++tile) {
        configuration.rows[tile] = static_cast<uint8_t>(kSide);
        configuration.row_bytes[tile] = static_cast<uint16_t>(tile == 7 ? kStepBytes : 4 * width);
    }
    // GCC 12 believes that the instruction reads 8 of the 64 bytes, and might store the others
    // later or never. Here it has to store all of them.
    __asm__ volatile("" : : "r"(&configuration) : "memory");
    _tile_loadconfig(&configuration);
}

struct Tile {
    const char* address;
    int64_t stride;
};

/// Copies 32 columns of 16 rows, with zeros behind the last column: a row may end where its memory
/// does.
void copy_tile(const char* const* rows, int64_t column, int64_t columns, char* to) {
    const int64_t left = columns - column;
    const __mmask32 mask = left >= kStep ? ~0u : (1u << left) - 1;
    for (int64_t j = 0; j < kSide; ++j) {
        const __m512i values = _mm512_maskz_loadu_epi16(mask, rows[j] + 2 * column);
        _mm512_store_si512(to + j * kStepBytes, values);
    }
}

/// Loads of tiles do not tell the compiler what they read, nor do stores what they write.
void settle_memory() { __asm__ volatile("" ::: "memory"); }

/// The rows of a panel in blocks of 16, read where they lie if they are evenly apart.
class RowsInPlace {
public:
    explicit RowsInPlace(const Panel& panel) : rows_(panel.rows), columns_(panel.columns) {
        for (int64_t block = 0; block < panel.row_count / kSide; ++block) {
            const char* const* rows = rows_ + block * kSide;
            stride_[block] = rows[1] - rows[0];
            bool even = true;
            for (int64_t j = 1; j < kSide; ++j) even &= rows[j] - rows[j - 1] == stride_[block];
            even_[block] = even;
        }
    }

    Tile tile(int64_t block, int64_t column) {
        const char* const* rows = rows_ + block * kSide;
        if (even_[block] && columns_ - column >= kStep) {
            return {rows[0] + 2 * column, stride_[block]};
        }
        copy_tile(rows, column, columns_, copies_[block]);
        settle_memory();
        return {copies_[block], kStepBytes};
    }

private:
    const char* const* rows_;
    int64_t columns_;
    int64_t stride_[kBlocks];
    bool even_[kBlocks];
    alignas(64) char copies_[kBlocks][kTileBytes];
};

/// A copy of some columns of a panel's rows, which stays in the first-level cache while several
/// groups of queries read it.
class CopiedRows {
public:
    static constexpr int64_t kColumns = 8 * kStep;

    /// Columns from `first` on.
    CopiedRows(const Panel& panel, int64_t first) : first_(first) {
        for (int64_t column = first; column < end(panel, first); column += kStep) {
            for (int64_t block = 0; block < panel.row_count / kSide; ++block) {
                copy_tile(panel.rows + block * kSide, column, panel.columns, at(block, column));
            }
        }
        settle_memory();
    }

    static int64_t end(const Panel& panel, int64_t first) {
        return first + kColumns < panel.columns ? first + kColumns : panel.columns;
    }

    Tile tile(int64_t block, int64_t column) { return {at(block, column), kStepBytes}; }

private:
    char* at(int64_t block, int64_t column) { return copies_[(column - first_) / kStep][block]; }

    int64_t first_;
    alignas(64) char copies_[kColumns / kStep][kBlocks][kTileBytes];
};

/// Brings the lines of the rows that come next towards the cache, some at a time: in turn one of
/// each block, which is a place of memory that the processor sees being read in order.
class Ahead {
public:
    /// All are brought in so many times, or fewer.
    Ahead(const Panel& panel, int64_t times) : rows_(panel.ahead), bytes_(2 * panel.columns) {
        const int64_t lines = (bytes_ + kCacheLine - 1) / kCacheLine;
        const int64_t of_row = times < kSide ? 1 : times / kSide;
        each_ = (lines + of_row - 1) / of_row;
    }

    void bring() {
        if (row_ == kSide) return;
        const char* const* rows = rows_ + row_;
        const char *row0 = rows[0], *row1 = rows[kSide], *row2 = rows[2 * kSide];
        const char* row3 = rows[3 * kSide];
        for (int64_t i = 0; i < each_; ++i) {
            __builtin_prefetch(row0 + byte_, 0, 2);
            __builtin_prefetch(row1 + byte_, 0, 2);
            __builtin_prefetch(row2 + byte_, 0, 2);
            __builtin_prefetch(row3 + byte_, 0, 2);
            byte_ += kCacheLine;
        }
        if (byte_ < bytes_) return;
        byte_ = 0;
        ++row_;
    }

private:
    const char* const* rows_;
    int64_t row_ = 0;
    int64_t bytes_, each_, byte_ = 0;
};

/// Sums of a group of queries, a tile for each block of rows.
using Sums = float[kBlocks][kSide * kSide];

void load_sums(const Sums& sums) {
    settle_memory();
    _tile_loadd(0, sums[0], 4 * kSide);
    _tile_loadd(1, sums[1], 4 * kSide);
    _tile_loadd(2, sums[2], 4 * kSide);
    _tile_loadd(3, sums[3], 4 * kSide);
}

void store_sums(Sums& sums) {
    _tile_stored(0, sums[0], 4 * kSide);
    _tile_stored(1, sums[1], 4 * kSide);
    _tile_stored(2, sums[2], 4 * kSide);
    _tile_stored(3, sums[3], 4 * kSide);
    settle_memory();
}

void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/// Adds products of the columns [first, end) to the sums in tiles 0 to 3: of a packed group of
/// `width` queries, and all rows.
template <class Rows>
void multiply_group(const Panel& panel, const char* queries, int64_t width, int64_t first,
                    int64_t end, Rows& rows, Ahead& ahead) {
    int32_t parts = 0;
    __builtin_memcpy(&parts, queries, sizeof(parts));
    const int64_t stride = 4 * width, part = steps_of(panel.columns) * stride * kSide;
    const char* tiles = queries + kHeader + first / kStep * stride * kSide;
    const int64_t blocks = panel.row_count / kSide;
// Names of tiles are part of instructions.
#define CLARA_MULTIPLY_BLOCK(block)                 \
    if (blocks > (block)) {                         \
        const Tile tile = rows.tile(block, column); \
        _tile_loadd(7, tile.address, tile.stride);  \
        _tile_dpbf16ps(block, 7, 4);                \
        if (parts > 1) _tile_dpbf16ps(block, 7, 5); \
        if (parts > 2) _tile_dpbf16ps(block, 7, 6); \
        ahead.bring();                              \
    }
    for (int64_t column = first; column < end; column += kStep, tiles += stride * kSide) {
        _tile_loadd(4, tiles, stride);
        if (parts > 1) _tile_loadd(5, tiles + part, stride);
        if (parts > 2) _tile_loadd(6, tiles + 2 * part, stride);
        CLARA_MULTIPLY_BLOCK(0)
        CLARA_MULTIPLY_BLOCK(1)
        CLARA_MULTIPLY_BLOCK(2)
        CLARA_MULTIPLY_BLOCK(3)
    }
#undef CLARA_MULTIPLY_BLOCK
}

/// Adds the sums of a group to those of the panel; returns whether all of these are finite.
bool add_sums(const Panel& panel, const Sums& sums, int64_t first, int64_t width) {
    unsigned not_finite = 0;
    for (int64_t block = 0; block < panel.row_count / kSide; ++block) {
        __m512i of_query[kSide];
        for (int64_t j = 0; j < kSide; ++j)
            of_query[j] = _mm512_load_si512(sums[block] + j * kSide);
        transpose(of_query);
        float* to = panel.sums + first * panel.sums_stride + block * kSide;
        for (int64_t i = 0; i < width; ++i, to += panel.sums_stride) {
            const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(to), floats_of(of_query[i]));
            _mm512_storeu_ps(to, sum);
            not_finite |= _mm512_fpclass_ps_mask(sum, kNotFinite);
        }
    }
    return not_finite == 0;
}

/// One group of queries, which waits for memory most of the time.
bool multiply_one(const Panel& panel) {
    Ahead ahead(panel, steps_of(panel.columns) * (panel.row_count / kSide));
    RowsInPlace rows(panel);
    alignas(64) Sums sums;
    configure(panel.query_count);
    zero_sums();
    multiply_group(panel, panel.queries, panel.query_count, 0, panel.columns, rows, ahead);
    store_sums(sums);
    _tile_release();
    return add_sums(panel, sums, 0, panel.query_count);
}

/// Some groups of queries, which share copies of rows.
bool multiply_several(const Panel& panel) {
    constexpr int64_t kMostGroups = 16;
    const int64_t queries = panel.query_count, groups = (queries + kSide - 1) / kSide;
    Ahead ahead(panel, groups * steps_of(panel.columns) * (panel.row_count / kSide));
    alignas(64) Sums sums[kMostGroups];
    bool finite = true;
    for (int64_t begin = 0; begin < queries; begin += kMostGroups * kSide) {
        const int64_t left = queries - begin;
        const int64_t count = left < kMostGroups * kSide ? left : kMostGroups * kSide;
        const auto width_of = [=](int64_t i) { return count - i < kSide ? count - i : kSide; };
        const char* packed = panel.queries + begin / kSide * panel.group_stride;
        configure(kSide);
        for (int64_t column = 0; column < panel.columns; column += CopiedRows::kColumns) {
            CopiedRows rows(panel, column);
            for (int64_t i = 0; i < count; i += kSide) {
                const int64_t width = width_of(i);
                // The last group may be narrower: the first one then comes after a wider one.
                if (width < kSide || (i == 0 && column > 0 && count % kSide != 0)) configure(width);
                column == 0 ? zero_sums() : load_sums(sums[i / kSide]);
                multiply_group(panel, packed + i / kSide * panel.group_stride, width, column,
                               CopiedRows::end(panel, column), rows, ahead);
                store_sums(sums[i / kSide]);
            }
        }
        _tile_release();
        for (int64_t i = 0; i < count; i += kSide) {
            finite &= add_sums(panel, sums[i / kSide], begin + i, width_of(i));
        }
    }
    return finite;
}

bool multiply(const Panel& panel) {
    return panel.query_count <= kSide ? multiply_one(panel) : multiply_several(panel);
}

}  // namespace

extern const PanelKernels kAmxPanels;
const PanelKernels kAmxPanels = {query_bytes, pack, multiply};

}  // namespace clara
