"""Kernels that find which candidate a slot takes, copy its memory, and add a gradient to it."""

from __future__ import annotations

import triton
import triton.language as tl

from ..segments import question_rows

_LAST = tl.constexpr(2**31 - 1)


@triton.jit
def _next(key, column, p_keys, first, end, BN: tl.constexpr):
    """The candidate that comes after (key, column) in the order; column -1 if there is none."""
    o_n = tl.arange(0, BN)
    best = tl.full([BN], -float("inf"), tl.float32)
    best_columns = tl.zeros([BN], tl.int32)
    for o in range(0, end - first, BN):
        columns = o + o_n
        m_n = columns < end - first
        keys = tl.load(p_keys + first + columns, mask=m_n, other=-float("inf"))
        m_later = (keys < key) | ((keys == key) & (columns > column))
        m_better = m_later & (keys > best)
        best = tl.where(m_better, keys, best)
        best_columns = tl.where(m_better, columns, best_columns)
    key = tl.max(best)
    column = tl.min(tl.where(best == key, best_columns, _LAST))
    return key, tl.where(key == -float("inf"), -1, column)


@triton.jit(do_not_specialize=["rows", "count", "slots"])
def order(p_keys, p_offsets, p_indices, rows, count, slots, BN: tl.constexpr):
    """Indices of one question."""
    question = tl.program_id(0)
    first, end = question_rows(question, p_offsets, rows, count)
    key, column = float("inf"), -1
    for slot in range(slots):
        key, column = _next(key, column, p_keys, first, end, BN)
        tl.store(p_indices + question * slots + slot, column)


@triton.jit(do_not_specialize=["rows", "count", "units", "slots"])
def gather(
    p_keys,
    p_memory,
    p_offsets,
    p_selected,
    p_indices,
    rows,
    count,
    units,
    slots,
    UNIT: tl.constexpr,
    ORDER: tl.constexpr,  # whether indices are found here, or given
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """A block of columns of what one slot takes."""
    width = units * UNIT
    question, slot = tl.program_id(0) // slots, tl.program_id(0) % slots
    first, end = question_rows(question, p_offsets, rows, count)
    o_slot = question * slots + slot
    if ORDER:
        key, column = float("inf"), -1
        for _ in range(slot + 1):
            key, column = _next(key, column, p_keys, first, end, BN)
        if tl.program_id(1) == 0:
            tl.store(p_indices + o_slot, column)
    else:
        column = tl.load(p_indices + o_slot).to(tl.int32)
    taken = tl.where(column >= 0, 1, 0)
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD]
    row = (first + column * taken).to(tl.int64)
    x = tl.load(p_memory + row * width + o_d, mask=o_d < width * taken, other=0.0)
    tl.store(p_selected + o_slot.to(tl.int64) * width + o_d, x, mask=o_d < width)


@triton.jit(do_not_specialize=["rows", "count", "units", "slots"])
def scatter(
    p_grad,
    p_indices,
    p_offsets,
    p_out,
    rows,
    count,
    units,
    slots,
    UNIT: tl.constexpr,
    BD: tl.constexpr,
):
    """Add a block of a slot's gradient to the memory that it took; no other slot took it."""
    width = units * UNIT
    question, slot = tl.program_id(0) // slots, tl.program_id(0) % slots
    first, _ = question_rows(question, p_offsets, rows, count)
    o_slot = question * slots + slot
    column = tl.load(p_indices + o_slot).to(tl.int32)
    if column < 0:
        return
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD]
    g = tl.load(p_grad + o_slot.to(tl.int64) * width + o_d, mask=o_d < width, other=0.0)
    p_out += (first + column).to(tl.int64) * width + o_d
    out = tl.load(p_out, mask=o_d < width, other=0.0).to(tl.float32) + g.to(tl.float32)
    tl.store(p_out, out, mask=o_d < width)
