"""Backward kernels of memory attention, without atomics: the same bits on every run.

With p = exp(s - lse) and D = Σ out · grad per row: dv = pᵀ grad, ds = p ∘ (grad vᵀ - D),
dq = scale · ds k and dk = scale · dsᵀ q. One kernel goes over the queries for each block of keys,
one over the keys for each tile of queries; both compute p anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..segments import find_segment
from .tiles import (
    VARYING,
    find_queries,
    load_rows,
    masked_block,
    packed_rows,
    packed_start,
    query_tile,
    seen_keys,
    sees,
    store_rows,
)


@triton.jit(do_not_specialize=["rows"])
def row_sums(
    p_out,
    p_grad,
    p_sums,
    rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Σ out · grad of each row of each head, float32 `[rows]`."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < rows
    out = load_rows(p_out, o_r, HEAD_DIM, m_r, HEAD_DIM, BLOCK_D, False).to(tl.float32)  # [BR, BD]
    grad = load_rows(p_grad, o_r, HEAD_DIM, m_r, HEAD_DIM, BLOCK_D, False).to(tl.float32)
    tl.store(p_sums + o_r, tl.sum(out * grad, 1), mask=m_r)


@triton.jit
def _key_step(
    state,
    k,
    v,
    p_q,
    p_grad,
    p_lse,
    p_sums,
    o_row,
    last_row,
    shift,
    o_n,
    heads,
    window,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """What one tile of packed rows adds to dk and dv of a block of keys."""
    dk, dv = state  # [BN, BD]
    o_m = o_row + tl.arange(0, BLOCK_M)
    m_m = o_m < last_row
    rows = packed_rows(o_m, heads, GROUP)
    q = load_rows(p_q, rows, HEAD_DIM, m_m, HEAD_DIM, BLOCK_D, False)  # [BM, BD]
    lse = tl.load(p_lse + rows, mask=m_m, other=float("inf")) * 1.4426950408889634
    s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale  # [BN, BM]
    p = tl.exp2(s - lse[None, :])
    if MASKED:
        own = shift + o_m // GROUP
        p = tl.where(sees(o_n[:, None], own[None, :], window, WINDOWED), p, 0.0)
    grad = load_rows(p_grad, rows, HEAD_DIM, m_m, HEAD_DIM, BLOCK_D, False)  # [BM, BD]
    dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision="ieee")
    sums = tl.load(p_sums + rows, mask=m_m, other=0.0)  # [BM]
    dp = tl.dot(v, tl.trans(grad), input_precision="ieee")  # [BN, BM]
    ds = p * (dp - sums[None, :])
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=VARYING)
def key_gradients(
    p_q,
    p_k,
    p_v,
    p_grad,
    p_lse,
    p_sums,
    p_dk,
    p_dv,
    p_offsets,
    p_q_offsets,
    documents,
    rows_each,
    heads,
    k_heads,
    v_heads,
    scale,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIFORM: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Grid: blocks of keys, key heads. `scale` is without log2(e)."""
    i_head = tl.program_id(1)
    document, block = find_segment(tl.program_id(0), p_offsets, documents, 1, BLOCK_N)
    first_key = tl.load(p_offsets + document)
    keys = tl.load(p_offsets + document + 1) - first_key
    o_key = block * BLOCK_N
    if (o_key < 0) | (o_key >= keys):
        return
    if UNIFORM:
        first_q, queries = document * rows_each, rows_each
    else:
        first_q = tl.load(p_q_offsets + document)
        queries = tl.load(p_q_offsets + document + 1) - first_q

    k_stride, v_stride = k_heads * HEAD_DIM, v_heads * HEAD_DIM
    o_n = o_key + tl.arange(0, BLOCK_N)
    m_n = o_n < keys
    p_k += first_key.to(tl.int64) * k_stride + i_head * HEAD_DIM
    p_v += first_key.to(tl.int64) * v_stride + i_head * HEAD_DIM
    k = load_rows(p_k, o_n, k_stride, m_n, HEAD_DIM, BLOCK_D, False)  # [BN, BD]
    v = load_rows(p_v, o_n, v_stride, m_n, HEAD_DIM, BLOCK_D, False)

    first = packed_start(first_q, i_head, heads, GROUP)
    p_q += first * HEAD_DIM
    p_grad += first * HEAD_DIM
    p_lse += first
    p_sums += first

    # Packed rows from `start` to `end` see a key of the block, from `full` to `behind` all of them.
    shift = keys - queries
    last_row = queries * GROUP
    start = tl.maximum(o_key - shift, 0) * GROUP // BLOCK_M * BLOCK_M
    full = tl.cdiv(tl.maximum(o_key + BLOCK_N - 1 - shift, 0) * GROUP, BLOCK_M) * BLOCK_M
    end = last_row
    if WINDOWED:
        end = tl.minimum(tl.maximum(o_key + BLOCK_N - 1 + window - shift, 0), queries) * GROUP
    full = tl.minimum(full, tl.cdiv(end, BLOCK_M) * BLOCK_M)
    behind, masked_end = end, full
    if WINDOWED:
        sees_all = tl.minimum(tl.maximum(o_key + window - shift, 0), queries) * GROUP
        behind = tl.maximum(sees_all // BLOCK_M * BLOCK_M, full)
        masked_end = end - (behind - full)  # the rows before `full`, then those after `behind`

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    log_scale = scale * 1.4426950408889634
    for o_block in range(start, masked_end, BLOCK_M):
        o_row = o_block
        if WINDOWED:
            o_row = tl.where(o_block < full, o_block, o_block + behind - full)
        dk, dv = _key_step(
            (dk, dv), k, v, p_q, p_grad, p_lse, p_sums, o_row, last_row, shift, o_n,
            heads, window, log_scale, GROUP, HEAD_DIM, BLOCK_D, BLOCK_M,
            MASKED=True, WINDOWED=WINDOWED,
        )  # fmt: skip
    for o_row in range(full, behind, BLOCK_M):
        dk, dv = _key_step(
            (dk, dv), k, v, p_q, p_grad, p_lse, p_sums, o_row, last_row, shift, o_n,
            heads, window, log_scale, GROUP, HEAD_DIM, BLOCK_D, BLOCK_M,
            MASKED=False, WINDOWED=WINDOWED,
        )  # fmt: skip

    out_stride = heads // GROUP * HEAD_DIM
    o_out = first_key.to(tl.int64) * out_stride + i_head * HEAD_DIM
    store_rows(p_dk + o_out, o_n, out_stride, m_n, dk * scale, HEAD_DIM, BLOCK_D)
    store_rows(p_dv + o_out, o_n, out_stride, m_n, dv, HEAD_DIM, BLOCK_D)


@triton.jit
def _query_step(
    dq,
    q,
    grad,
    lse,
    sums,
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
    """What one block of keys adds to dq of a tile of packed rows."""
    o_n = o_key + tl.arange(0, BLOCK_N)
    m_n = o_n < keys
    k = load_rows(p_k, o_n, k_stride, m_n, HEAD_DIM, BLOCK_D, not MASKED)  # [BN, BD]
    v = load_rows(p_v, o_n, v_stride, m_n, HEAD_DIM, BLOCK_D, not MASKED)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [BM, BN]
    p = tl.exp2(s - lse[:, None])
    if MASKED:
        p = tl.where(sees(o_n[None, :], last_key[:, None], window, WINDOWED), p, 0.0)
    dp = tl.dot(grad, tl.trans(v), input_precision="ieee")  # [BM, BN]
    ds = p * (dp - sums[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit(do_not_specialize=VARYING)
def query_gradients(
    p_q,
    p_k,
    p_v,
    p_grad,
    p_lse,
    p_sums,
    p_dq,
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
    """Grid: tiles of packed rows, key heads, parts of the keys. `scale` is without log2(e)."""
    i_head, i_split = tl.program_id(1), tl.program_id(2)
    document, o_row, first_q, queries = find_queries(
        tl.program_id(0), p_q_offsets, documents, rows_each, GROUP, BLOCK_M, UNIFORM
    )
    if (o_row < 0) | (o_row >= queries * GROUP):
        return
    p_k, p_v, k_stride, v_stride, keys, o_m, m_m, rows, first, q = query_tile(
        p_q, p_k, p_v, p_offsets, document, i_head, o_row, first_q, queries, heads, k_heads,
        v_heads, GROUP, HEAD_DIM, BLOCK_D, BLOCK_M,
    )  # fmt: skip
    grad = load_rows(p_grad + first * HEAD_DIM, rows, HEAD_DIM, m_m, HEAD_DIM, BLOCK_D, False)
    lse = tl.load(p_lse + first + rows, mask=m_m, other=float("inf")) * 1.4426950408889634
    sums = tl.load(p_sums + first + rows, mask=m_m, other=0.0)  # [BM]
    last_key = keys - queries + o_m // GROUP  # [BM]

    start, ahead, full, end = seen_keys(
        o_row, queries, keys, window, i_split, splits, GROUP, BLOCK_M, BLOCK_N, WINDOWED
    )

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    log_scale = scale * 1.4426950408889634
    for o_key in range(ahead, full, BLOCK_N):
        dq = _query_step(
            dq, q, grad, lse, sums, p_k, p_v, k_stride, v_stride, o_key, keys, last_key, window,
            log_scale, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=False, WINDOWED=WINDOWED,
        )  # fmt: skip
    for o_block in range(full - (ahead - start), end, BLOCK_N):
        o_key = masked_block(o_block, ahead, full, WINDOWED)
        dq = _query_step(
            dq, q, grad, lse, sums, p_k, p_v, k_stride, v_stride, o_key, keys, last_key, window,
            log_scale, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True, WINDOWED=WINDOWED,
        )  # fmt: skip
    first += i_split.to(tl.int64) * q_rows * heads
    store_rows(p_dq + first * HEAD_DIM, rows, HEAD_DIM, m_m, dq * scale, HEAD_DIM, BLOCK_D)
