// Linear layers with adapters, by AVX-512's products of bfloat16 values. Rows of x are packed along
// lanes, for they are what all outputs share; weights are read as they are stored.

#include "core/simd/dot_bfloat16.hpp"
#include "core/simd/linear.hpp"

namespace clara {
namespace {

constexpr int64_t kPackedBytes = 384 << 10;  // of x that is packed at a time: it stays in L2
constexpr int64_t kFewRows = 8;  // so many beyond whole groups are multiplied without lanes for all
constexpr int64_t kDotOutputs = 6, kDotRows = 4;

int64_t aligned(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

/// Rows of x that are multiplied together: whole groups of lanes, and a few more.
struct Block {
    int64_t first, rows, groups, few;
    char* packed;       // x
    char* changes;      // scaling · x A', packed likewise
    char* few_changes;  // the same of the few, [few, rank]

    int64_t lanes() const { return groups * kLanes; }
};

constexpr int64_t kSumsBytes = kLinearOutputs * kLinearRows * 4;  // where scratch memory begins

/// What a block needs of the scratch memory behind the sums.
struct BlockBytes {
    int64_t packed, changes, few;

    explicit BlockBytes(const AdaptedLinear& call)
        : packed(aligned(kLinearRows * call.inputs * 2)),
          changes(aligned(kLinearRows * call.rank * 2)),
          few(aligned(kFewRows * call.rank * 2)) {}

    int64_t all() const { return packed + changes + few; }
};

int64_t blocks_at_once(const AdaptedLinear& call) {
    const int64_t fitting = kPackedBytes / (kLinearRows * call.inputs * 2);
    return fitting < 1 ? 1 : fitting;
}

int64_t scratch_bytes(const AdaptedLinear& call, int64_t rows) {
    const int64_t blocks = (rows + kLinearRows - 1) / kLinearRows;
    return kSumsBytes + least(blocks, blocks_at_once(call)) * BlockBytes(call).all();
}

/// Rows of a matrix as the loops below take them: of fewer, the last one is repeated.
struct Weights {
    const char* rows;
    int64_t stride, count;

    const char* row(int64_t i) const { return rows + least(i, count - 1) * stride; }
};

/// sums[j][i] = ⟨x_i, w_j⟩ + ⟨change_i, up_j⟩ for kRows outputs and all lanes of a block.
template <int kRows, int kGroups>
void multiply_tile(const Block& block, const Weights& weights, int64_t inputs, const Weights& up,
                   int64_t rank, float* sums) {
    __m512 sum[kRows][kGroups];
    const char* row[kRows];
    clear(sum);
#pragma GCC unroll 24
    for (int j = 0; j < kRows; ++j) row[j] = weights.row(j);
    add_products<kRows, kGroups>(sum, block.packed, row, inputs / 2,
                                 weights.rows + kRows * weights.stride, weights.stride);
    if (rank > 0) {
#pragma GCC unroll 24
        for (int j = 0; j < kRows; ++j) row[j] = up.row(j);
        add_products<kRows, kGroups>(sum, block.changes, row, rank / 2, nullptr, 0);
    }
    store(sum, sums, kLinearRows, weights.count);
}

Weights behind(const Weights& weights, int64_t rows) {
    return {weights.rows + rows * weights.stride, weights.stride, weights.count - rows};
}

template <int kGroups>
void multiply_tiles(const Block& block, const Weights& weights, int64_t inputs, const Weights& up,
                    int64_t rank, float* sums) {
    constexpr int kRows = kSums / kGroups;
    for (int64_t j = 0; j < weights.count; j += kRows) {
        multiply_tile<kRows, kGroups>(block, behind(weights, j), inputs, behind(up, j), rank,
                                      sums + j * kLinearRows);
    }
}

/// The sum of two vectors' products, over columns of which the last few may be fewer than lanes.
template <int kCount>
void add_dots(__m512 (&sum)[kCount][kDotOutputs], const char* x, int64_t x_stride,
              const Weights& weights, int64_t columns) {
    for (int64_t column = 0; column < columns; column += 2 * kLanes) {
        const __mmask16 mask = first_lanes((columns - column) / 2);
        __m512bh values[kCount];
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) {
            values[i] = as_pairs(_mm512_maskz_loadu_epi32(mask, x + i * x_stride + 2 * column));
        }
#pragma GCC unroll 6
        for (int j = 0; j < kDotOutputs; ++j) {
            const __m512bh row =
                as_pairs(_mm512_maskz_loadu_epi32(mask, weights.row(j) + 2 * column));
#pragma GCC unroll 4
            for (int i = 0; i < kCount; ++i) {
                sum[i][j] = _mm512_dpbf16_ps(sum[i][j], values[i], row);
            }
        }
    }
}

/// Some rows of x, which are multiplied with lanes along the columns.
struct FewRows {
    const char* x;
    int64_t x_stride;
    const char* changes;  // [rows, rank]
};

template <int kCount>
void multiply_few(const FewRows& few, const Weights& weights, int64_t inputs, const Weights& up,
                  int64_t rank, float* sums) {
    for (int64_t j = 0; j < weights.count; j += kDotOutputs) {
        __m512 sum[kCount][kDotOutputs];
        clear(sum);
        add_dots<kCount>(sum, few.x, few.x_stride, behind(weights, j), inputs);
        if (rank > 0) add_dots<kCount>(sum, few.changes, 2 * rank, behind(up, j), rank);
        const int64_t count = least(kDotOutputs, weights.count - j);
        for (int64_t at = 0; at < count; ++at) {
            for (int i = 0; i < kCount; ++i) {
                sums[(j + at) * kLinearRows + i] = _mm512_reduce_add_ps(sum[i][at]);
            }
        }
    }
}

/// The sums of all rows of a block with some outputs.
void multiply_block(const AdaptedLinear& call, const Block& block, const Weights& weights,
                    const Weights& up, int64_t rank, float* sums) {
    switch (block.groups) {
        case 0:
            break;
        case 1:
            multiply_tiles<1>(block, weights, call.inputs, up, rank, sums);
            break;
        case 2:
            multiply_tiles<2>(block, weights, call.inputs, up, rank, sums);
            break;
        case 3:
            multiply_tiles<3>(block, weights, call.inputs, up, rank, sums);
            break;
        default:
            multiply_tiles<4>(block, weights, call.inputs, up, rank, sums);
    }
    for (int64_t i = 0; i < block.few; i += kDotRows) {
        const int64_t row = block.lanes() + i;
        const FewRows few{call.x + (block.first + row) * call.x_stride * 2, call.x_stride * 2,
                          block.few_changes + i * call.rank * 2};
        float* to = sums + row;
        switch (least(kDotRows, block.few - i)) {
            case 1:
                multiply_few<1>(few, weights, call.inputs, up, rank, to);
                break;
            case 2:
                multiply_few<2>(few, weights, call.inputs, up, rank, to);
                break;
            case 3:
                multiply_few<3>(few, weights, call.inputs, up, rank, to);
                break;
            default:
                multiply_few<4>(few, weights, call.inputs, up, rank, to);
        }
    }
}

/// A block whose rows are, or will be, packed at `memory`.
Block block_at(const BlockBytes& bytes, int64_t first, int64_t rows, char* memory) {
    const int64_t rest = rows % kLanes, few = rest <= kFewRows ? rest : 0;
    const int64_t groups = (rows - few + kLanes - 1) / kLanes;
    char* changes = memory + bytes.packed;
    return {first, rows, groups, few, memory, changes, changes + bytes.changes};
}

void pack(const AdaptedLinear& call, const Block& block) {
    const int64_t stride = call.x_stride * 2, lanes = block.rows - block.few;
    for (int64_t g = 0; g < block.groups; ++g) {
        pack_rows(call.x + (block.first + g * kLanes) * stride, stride,
                  least(kLanes, lanes - g * kLanes), call.inputs, block.groups,
                  block.packed + g * kLine);
    }
}

/// Sums of a block with some outputs, and what becomes of them: sums · factor + bias.
struct Sums {
    const float* values;  // [count, kLinearRows]
    int64_t count;
    float factor;
    const float* bias;  // [count] or null
};

/// Writes sums as rows of bfloat16 values.
void store(const Block& block, const Sums& sums, char* out, int64_t stride_bytes) {
    const __m512 factor = _mm512_set1_ps(sums.factor);
    for (int64_t j = 0; j < sums.count; j += kLanes) {
        const __mmask16 mask = first_lanes(sums.count - j);
        const __m512 bias =
            sums.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, sums.bias + j);
        for (int64_t i = 0; i < block.rows; i += kLanes) {
            __m512i values[16];
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                values[lane] = _mm512_loadu_si512(
                    sums.values + least(j + lane, sums.count - 1) * kLinearRows + i);
            }
            transpose(values);
            const int64_t rows = least(kLanes, block.rows - i);
            char* to = out + i * stride_bytes + j * 2;
            for (int64_t row = 0; row < rows; ++row) {
                const __m512 value = _mm512_castsi512_ps(values[row]);
                _mm256_mask_storeu_epi16(to + row * stride_bytes, mask,
                                         rounded(_mm512_fmadd_ps(value, factor, bias)));
            }
        }
    }
}

/// Packs `scaling · x A'` of a packed block; `keeps` writes it to the call's changes, too.
void pack_changes(const AdaptedLinear& call, const Block& block, float* all_sums, bool keeps) {
    const __m512 scaling = _mm512_set1_ps(call.scaling);
    for (int64_t j = 0; j < call.rank; j += kLinearOutputs) {
        const int64_t count = least(kLinearOutputs, call.rank - j);
        const Weights down{call.down + j * call.inputs * 2, call.inputs * 2, count};
        multiply_block(call, block, down, down, 0, all_sums);
        if (keeps && call.changes != nullptr) {
            store(block, {all_sums, count, call.scaling, nullptr},
                  call.changes + (block.first * call.rank + j) * 2, call.rank * 2);
        }
        for (int64_t at = 0; at < count; at += 2) {
            const float* sums = all_sums + at * kLinearRows;
            for (int64_t g = 0; g < block.groups; ++g) {
                const float* lanes = sums + g * kLanes;
                const __m512 one = _mm512_mul_ps(_mm512_loadu_ps(lanes), scaling);
                const __m512 other = _mm512_mul_ps(_mm512_loadu_ps(lanes + kLinearRows), scaling);
                _mm512_storeu_si512(block.changes + ((j + at) / 2 * block.groups + g) * kLine,
                                    interleaved(rounded(one), rounded(other)));
            }
            for (int64_t i = 0; i < block.few; ++i) {
                const float* own = sums + block.lanes() + i;
                const __m512 pair =
                    _mm512_mask_mov_ps(_mm512_set1_ps(own[0]), 2, _mm512_set1_ps(own[kLinearRows]));
                const __m128i values =
                    _mm256_castsi256_si128(rounded(_mm512_mul_ps(pair, scaling)));
                const int bits = _mm_cvtsi128_si32(values);
                __builtin_memcpy(block.few_changes + (i * call.rank + j + at) * 2, &bits,
                                 sizeof(bits));
            }
        }
    }
}

void multiply(const AdaptedLinear& call, const LinearPart& part, char* memory) {
    const BlockBytes bytes(call);
    auto* sums = reinterpret_cast<float*>(memory);
    const int64_t most = blocks_at_once(call) * kLinearRows;
    for (int64_t first = part.first_row; first < part.last_row; first += most) {
        const int64_t end = least(first + most, part.last_row);
        for (int64_t output = part.first_output; output < part.last_output;
             output += kLinearOutputs) {
            const int64_t count = least(kLinearOutputs, part.last_output - output);
            const Weights weights{call.weight + output * call.inputs * 2, call.inputs * 2, count};
            const Weights up{call.up + output * call.rank * 2, call.rank * 2, count};
            const float* bias = call.bias == nullptr ? nullptr : call.bias + output;
            for (int64_t row = first; row < end; row += kLinearRows) {
                char* own = memory + kSumsBytes + (row - first) / kLinearRows * bytes.all();
                const int64_t rows = least(kLinearRows, end - row);
                const Block block = block_at(bytes, row, rows, own);
                if (output == part.first_output) {
                    pack(call, block);
                    pack_changes(call, block, sums, output == 0);
                }
                multiply_block(call, block, weights, up, call.rank, sums);
                store(block, {sums, count, 1, bias},
                      call.out + (row * call.out_stride + output) * 2, call.out_stride * 2);
            }
        }
    }
}

}  // namespace

extern const LinearKernels kAvx512Linear;
const LinearKernels kAvx512Linear = {scratch_bytes, multiply};

}  // namespace clara
