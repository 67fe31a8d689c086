"""What the attention kernels share: which rows a program works on, and the mask.

The heads of a group, which share keys, are packed into one tile of queries: packed row r of a
document is query row r // GROUP of head r % GROUP. So a few memory rows still fill a tile of the
matrix units, and every key is read once for all heads that need it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..segments import find_segment

# Arguments that differ between calls: no value of them gets a build of its own.
VARYING = [
    "documents",
    "rows_each",
    "heads",
    "q_rows",
    "k_heads",
    "v_heads",
    "scale",
    "splits",
    "window",
]


@triton.jit
def find_queries(
    i_tile,
    p_q_offsets,
    documents,
    rows_each,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UNIFORM: tl.constexpr,
):
    """Document of a tile of packed rows, the tile's first packed row, the document's first query
    row and their number. `UNIFORM`: every document has `rows_each` query rows."""
    if UNIFORM:
        tiles_each = tl.cdiv(rows_each * GROUP, BLOCK_M)
        document = i_tile // tiles_each
        tile, first, count = i_tile % tiles_each, document * rows_each, rows_each
    else:
        document, tile = find_segment(i_tile, p_q_offsets, documents, GROUP, BLOCK_M)
        first = tl.load(p_q_offsets + document)
        count = tl.load(p_q_offsets + document + 1) - first
    return document, tile * BLOCK_M, first, count


@triton.jit
def packed_start(first_row, i_kv_head, heads, GROUP: tl.constexpr):
    """Where a document's packed rows begin in a tensor `[query rows, heads]`."""
    return first_row.to(tl.int64) * heads + i_kv_head * GROUP


@triton.jit
def packed_rows(r, heads, GROUP: tl.constexpr):
    """Where packed rows `r` lie after that; 32 bits do within a document."""
    return r // GROUP * heads + r % GROUP


@triton.jit
def seen_keys(
    o_row,
    queries,
    keys,
    window,
    i_split,
    splits,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Keys for one part of a tile: `start`, `ahead`, `full`, `end`.

    From `ahead` to `full` every row of the tile sees every key. From `start` to `ahead`, where
    windows begin, and from `full` to `end`, where rows end, some rows see some keys. The parts are
    of equal numbers of blocks; `start`, `ahead` and `full` are multiples of a block.
    """
    shift = keys - queries
    end = tl.minimum(keys, shift + (o_row + BLOCK_M - 1) // GROUP + 1)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(shift + o_row // GROUP - window + 1, 0) // BLOCK_N * BLOCK_N
    part = tl.cdiv(tl.cdiv(end - begin, BLOCK_N), splits) * BLOCK_N
    start = begin + i_split * part
    end = tl.minimum(end, start + part)
    full = tl.minimum(shift + o_row // GROUP + 1, end) // BLOCK_N * BLOCK_N
    full = tl.maximum(full, start)
    ahead = start
    if WINDOWED:
        last_begin = shift + (o_row + BLOCK_M - 1) // GROUP - window + 1
        ahead = tl.cdiv(tl.maximum(last_begin, 0), BLOCK_N) * BLOCK_N
        ahead = tl.minimum(tl.maximum(ahead, start), full)
    return start, ahead, full, end


@triton.jit
def masked_block(o_block, ahead, full, WINDOWED: tl.constexpr):
    """First key of a block: of those before `ahead` if `o_block` is below `full`, else itself."""
    o_key = o_block
    if WINDOWED:
        o_key = tl.where(o_block < full, o_block - (full - ahead), o_block)
    return o_key


@triton.jit
def sees(key, own, window, WINDOWED: tl.constexpr):
    """Whether a row whose own key is `own` sees `key`; one block each, of shapes that broadcast."""
    seen = key <= own
    if WINDOWED:
        seen = seen & (key > own - window)
    return seen


@triton.jit
def load_rows(
    p_x, rows, stride, m_rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALL: tl.constexpr
):
    """Rows of `HEAD_DIM` values as a block `[rows, BLOCK_D]`, 0 beyond; `ALL`: no row is masked."""
    o_d = tl.arange(0, BLOCK_D)
    p = p_x + rows[:, None] * stride + o_d[None, :]
    if ALL and HEAD_DIM == BLOCK_D:
        x = tl.load(p)
    elif ALL:
        x = tl.load(p, mask=(o_d < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM == BLOCK_D:
        x = tl.load(p, mask=m_rows[:, None], other=0.0)
    else:
        x = tl.load(p, mask=m_rows[:, None] & (o_d < HEAD_DIM)[None, :], other=0.0)
    return x


@triton.jit
def query_tile(
    p_q,
    p_k,
    p_v,
    p_offsets,
    document,
    i_head,
    o_row,
    first_q,
    queries,
    heads,
    k_heads,
    v_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A tile of packed query rows, and where its document's keys and values begin.

    Returns `p_k` and `p_v` moved there, their strides, the number of keys, the tile's packed rows
    and which of them exist, where they lie after `first`, `first`, and the queries `[BM, BD]`.
    """
    first_key = tl.load(p_offsets + document)
    keys = tl.load(p_offsets + document + 1) - first_key
    k_stride, v_stride = k_heads * HEAD_DIM, v_heads * HEAD_DIM
    p_k += first_key.to(tl.int64) * k_stride + i_head * HEAD_DIM
    p_v += first_key.to(tl.int64) * v_stride + i_head * HEAD_DIM
    o_m = o_row + tl.arange(0, BLOCK_M)
    m_m = o_m < queries * GROUP
    rows = packed_rows(o_m, heads, GROUP)
    first = packed_start(first_q, i_head, heads, GROUP)
    q = load_rows(p_q + first * HEAD_DIM, rows, HEAD_DIM, m_m, HEAD_DIM, BLOCK_D, False)  # [BM, BD]
    return p_k, p_v, k_stride, v_stride, keys, o_m, m_m, rows, first, q


@triton.jit
def store_rows(p_x, rows, stride, m_rows, x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    o_d = tl.arange(0, BLOCK_D)
    p = p_x + rows[:, None] * stride + o_d[None, :]
    mask = m_rows[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (o_d < HEAD_DIM)[None, :]
    tl.store(p, x.to(p_x.dtype.element_ty), mask=mask)
