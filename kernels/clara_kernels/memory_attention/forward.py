"""Forward kernels of memory attention: flash attention over packed documents.

One program computes a tile of packed rows against the keys of its document, or against a part of
them, `combine` then joining the parts by their log-sum-exps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    VARYING,
    find_queries,
    load_rows,
    masked_block,
    query_tile,
    seen_keys,
    sees,
    store_rows,
)


@triton.jit
def _attend(
    state,
    q,
    p_k,
    p_v,
    k_stride,
    v_stride,
    o_key,
    keys,
    last_key,
    window,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """One block of keys. `state`: sums of values, sums of weights, maximum, in base 2."""
    acc, total, top = state  # [BM, BD], [BM], [BM]
    o_n = o_key + tl.arange(0, BLOCK_N)
    m_n = o_n < keys
    k = load_rows(p_k, o_n, k_stride, m_n, HEAD_DIM, BLOCK_D, not MASKED)  # [BN, BD]
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [BM, BN]
    if MASKED:
        s = tl.where(sees(o_n[None, :], last_key[:, None], window, WINDOWED), s, -float("inf"))
    new_top = tl.maximum(top, tl.max(s, 1))
    # A row that has seen no key yet has no maximum.
    base = tl.where(new_top == -float("inf"), 0.0, new_top) if MASKED else new_top
    p = tl.exp2(s - base[:, None])
    decay = tl.exp2(top - base)
    v = load_rows(p_v, o_n, v_stride, m_n, HEAD_DIM, BLOCK_D, not MASKED)  # [BN, BD]
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, total * decay + tl.sum(p, 1), new_top


@triton.jit(do_not_specialize=VARYING)
def forward(
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_offsets,
    p_q_offsets,
    documents,
    rows_each,
    heads,
    q_rows,
    k_heads,
    v_heads,
    scale,
    splits,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIFORM: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Grid: tiles of packed rows, key heads, parts of the keys. `scale` includes log2(e)."""
    i_head, i_split = tl.program_id(1), tl.program_id(2)
    document, o_row, first_q, queries = find_queries(
        tl.program_id(0), p_q_offsets, documents, rows_each, GROUP, BLOCK_M, UNIFORM
    )
    if (o_row < 0) | (o_row >= queries * GROUP):  # negative: before the first document
        return
    p_k, p_v, k_stride, v_stride, keys, o_m, m_m, rows, first, q = query_tile(
        p_q, p_k, p_v, p_offsets, document, i_head, o_row, first_q, queries, heads, k_heads,
        v_heads, GROUP, HEAD_DIM, BLOCK_D, BLOCK_M,
    )  # fmt: skip
    last_key = keys - queries + o_m // GROUP  # [BM]

    start, ahead, full, end = seen_keys(
        o_row, queries, keys, window, i_split, splits, GROUP, BLOCK_M, BLOCK_N, WINDOWED
    )

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    for o_key in range(ahead, full, BLOCK_N):
        acc, total, top = _attend(
            (acc, total, top), q, p_k, p_v, k_stride, v_stride, o_key, keys, last_key, window,
            scale, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=False, WINDOWED=WINDOWED,
        )  # fmt: skip
    # Masked blocks in one loop: the kernel is smaller, and takes fewer registers.
    for o_block in range(full - (ahead - start), end, BLOCK_N):
        o_key = masked_block(o_block, ahead, full, WINDOWED)
        acc, total, top = _attend(
            (acc, total, top), q, p_k, p_v, k_stride, v_stride, o_key, keys, last_key, window,
            scale, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True, WINDOWED=WINDOWED,
        )  # fmt: skip

    # A part without keys weighs nothing.
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    lse = (top + tl.log2(total)) * 0.6931471805599453
    first += i_split.to(tl.int64) * q_rows * heads
    store_rows(p_out + first * HEAD_DIM, rows, HEAD_DIM, m_m, out, HEAD_DIM, BLOCK_D)
    tl.store(p_lse + first + rows, lse, mask=m_m)


@triton.jit(do_not_specialize=["rows", "splits"])
def combine(
    p_parts,
    p_part_lse,
    p_out,
    p_lse,
    rows,
    splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Join parts `[splits, rows, HEAD_DIM]` whose softmax sums have the logs `[splits, rows]`."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < rows
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    for i in range(splits):
        part = tl.load(p_part_lse + i * rows + o_r, mask=m_r, other=0.0)
        top = tl.maximum(top, part)
    top = tl.where(top == -float("inf"), 0.0, top)  # of a row without keys
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for i in range(splits):
        part = tl.load(p_part_lse + i * rows + o_r, mask=m_r, other=0.0)
        weight = tl.exp(part - top)  # [BR]
        x = load_rows(p_parts, i * rows + o_r, HEAD_DIM, m_r, HEAD_DIM, BLOCK_D, False)  # [BR, BD]
        acc += weight[:, None] * x
        total += weight
    total = tl.where(total == 0, 1.0, total)
    store_rows(p_out, o_r, HEAD_DIM, m_r, acc / total[:, None], HEAD_DIM, BLOCK_D)
    tl.store(p_lse + o_r, top + tl.log(total), mask=m_r)
