"""Kernels of the relaxed selection: its probabilities, and the gradient of the scores."""

from __future__ import annotations

import triton
import triton.language as tl

from ..segments import question_rows, question_tile


@triton.jit(do_not_specialize=["questions", "rows", "count", "units", "slots", "part_blocks"])
def weights(
    p_grad,
    p_memory,
    p_offsets,
    p_parts,
    questions,
    rows,
    count,
    units,
    slots,
    part_blocks,
    UNIT: tl.constexpr,
    BJ: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Inner products of slot gradients and candidates over one part of the columns."""
    width = units * UNIT
    question, _, row, end = question_tile(tl.program_id(0), p_offsets, questions, rows, count, BN)
    if row >= end:
        return
    o_n = row + tl.arange(0, BN)  # [BN]
    o_j = tl.program_id(2) * BJ + tl.arange(0, BJ)  # [BJ]
    m_n, m_j = o_n < end, o_j < slots
    start = tl.program_id(1) * part_blocks * BD
    stop = tl.minimum(start + part_blocks * BD, width)
    p_x = p_memory + o_n.to(tl.int64)[:, None] * width
    p_g = p_grad + (question * slots + o_j).to(tl.int64)[:, None] * width
    acc = tl.zeros([BN, BJ], tl.float32)
    for o in tl.range(start, stop, BD, num_stages=STAGES):
        o_d = o + tl.arange(0, BD)[None, :]  # [1, BD]
        x = tl.load(p_x + o_d, mask=m_n[:, None] & (o_d < stop), other=0.0)  # [BN, BD]
        g = tl.load(p_g + o_d, mask=m_j[:, None] & (o_d < stop), other=0.0)  # [BJ, BD]
        acc = tl.dot(x, g.T, acc, input_precision="ieee")
    part = (tl.program_id(1) * slots + o_j).to(tl.int64)[None, :] * rows
    tl.store(p_parts + part + o_n[:, None], acc, mask=m_n[:, None] & m_j[None, :])


@triton.jit
def _slot_logits(p_keys, divisor, first, end, o, slot, key, penalty, BN: tl.constexpr):
    """z of BN candidates from `o` on as each slot sees them, `[BJ, BN]`.

    A slot's candidate is `slot` `[BJ]`, -1 for none, and its key is `key`: what comes before it in
    the order has been taken.
    """
    columns = o + tl.arange(0, BN)  # [BN]
    m_n = columns < end - first
    keys = tl.load(p_keys + first + columns, mask=m_n, other=-float("inf"))
    logits = tl.math.div_rn(keys, divisor + tl.zeros_like(keys))
    m_tied = (keys[None, :] == key[:, None]) & (columns[None, :] < slot[:, None])
    m_taken = (keys[None, :] > key[:, None]) | m_tied  # [BJ, BN]
    left = tl.where(m_taken, (logits + penalty)[None, :], logits[None, :])
    return tl.where((slot >= 0)[:, None], left, -float("inf"))


@triton.jit
def _slots(p_keys, p_indices, question, first, j, slots, BJ: tl.constexpr):
    """The numbers of BJ slots from `j` on, their candidates, and the keys of these, `[BJ]`."""
    o_j = j + tl.arange(0, BJ)  # [BJ]
    slot = tl.load(p_indices + question * slots + o_j, mask=o_j < slots, other=-1).to(tl.int32)
    return o_j, slot, tl.load(p_keys + first + slot, mask=slot >= 0, other=-float("inf"))


@triton.jit
def _normaliser(
    p_keys,
    divisor,
    first,
    end,
    slot,
    key,
    penalty,
    SPARSE: tl.constexpr,
    BJ: tl.constexpr,
    BN: tl.constexpr,
):
    """Each slot's highest logit, and the sum of its exponentials or sparsemax's threshold."""
    top = tl.full([BJ], -float("inf"), tl.float32)
    for o in range(0, end - first, BN):
        z = _slot_logits(p_keys, divisor, first, end, o, slot, key, penalty, BN)
        top = tl.maximum(top, tl.max(z, 1))
    top = tl.where(top == -float("inf"), 0.0, top)
    if SPARSE:  # see sparsemax/triton.py
        norm = tl.full([BJ], -1.0, tl.float32)
        support = tl.full([BJ], 2**30, tl.int32)
        rising = 1
        while rising > 0:
            count = tl.zeros([BJ], tl.int32)
            total = tl.zeros([BJ], tl.float32)
            for o in range(0, end - first, BN):
                z = _slot_logits(p_keys, divisor, first, end, o, slot, key, penalty, BN)
                z -= top[:, None]
                m_above = z > norm[:, None]
                count += tl.sum(m_above.to(tl.int32), 1)
                total += tl.sum(tl.where(m_above, z, 0.0), 1)
            m_rising = (count < support) & (count > 0)
            mean = tl.math.div_rn(total - 1.0, tl.maximum(count, 1).to(tl.float32))
            norm = tl.where(m_rising, mean, norm)
            support = count
            rising = tl.max(m_rising.to(tl.int32))
    else:
        norm = tl.zeros([BJ], tl.float32)
        for o in range(0, end - first, BN):
            z = _slot_logits(p_keys, divisor, first, end, o, slot, key, penalty, BN)
            norm += tl.sum(tl.exp(z - top[:, None]), 1)
        norm = tl.where(norm == 0, 1.0, norm)
    return top, norm


@triton.jit
def _relaxed(z, top, norm, SPARSE: tl.constexpr):
    """p of logits `[BJ, BN]`."""
    if SPARSE:
        p = tl.maximum(z - top[:, None] - norm[:, None], 0.0)
    else:
        p = tl.math.div_rn(tl.exp(z - top[:, None]), norm[:, None] + tl.zeros_like(z))
    return p


@triton.jit
def _shares(p_parts, p, o_j, o_row, m, rows, slots, parts, SPARSE: tl.constexpr):
    """The weight of each candidate in its slot's Jacobian, and ∂L/∂p, 0 where p is 0."""
    p_a = p_parts + o_j.to(tl.int64)[:, None] * rows + o_row[None, :]  # [BJ, BN]
    a = tl.zeros_like(p)
    for i in range(parts):
        a += tl.load(p_a + (i * slots).to(tl.int64) * rows, mask=m, other=0.0)
    share = (p > 0).to(tl.float32) if SPARSE else p
    return share, tl.where(p == 0, 0.0, a)


@triton.jit(do_not_specialize=["questions", "rows", "count", "slots", "parts", "noisy"])
def jacobian(
    p_parts,
    p_keys,
    p_indices,
    p_offsets,
    p_temperature,
    p_out,
    questions,
    rows,
    count,
    slots,
    parts,
    noisy,  # whether keys are z already, not scores
    penalty,
    SPARSE: tl.constexpr,
    BJ: tl.constexpr,
    BN: tl.constexpr,
):
    """Gradient of BN scores: Σ_j share_j (a_j - mean_j) / τ, the mean weighted by the shares."""
    question, i_n, row, end = question_tile(tl.program_id(0), p_offsets, questions, rows, count, BN)
    if row >= end:
        return
    first, end = question_rows(question, p_offsets, rows, count)
    temperature = tl.load(p_temperature)
    divisor = tl.where(noisy > 0, 1.0, temperature)
    o_n = tl.arange(0, BN)  # [BN]
    total = tl.zeros([BN], tl.float32)
    for j in range(0, slots, BJ):
        o_j, slot, key = _slots(p_keys, p_indices, question, first, j, slots, BJ)
        top, norm = _normaliser(p_keys, divisor, first, end, slot, key, penalty, SPARSE, BJ, BN)
        dot = tl.zeros([BJ], tl.float32)
        mass = tl.zeros([BJ], tl.float32)
        share = tl.zeros([BJ, BN], tl.float32)
        a = tl.zeros([BJ, BN], tl.float32)
        # Its own block last, so that share and a are those of it.
        blocks = tl.cdiv(end - first, BN)
        for i in range(blocks):
            o = (i_n + 1 + i) % blocks * BN
            z = _slot_logits(p_keys, divisor, first, end, o, slot, key, penalty, BN)
            p = _relaxed(z, top, norm, SPARSE)
            o_row = first + o + o_n
            m = (o_j < slots)[:, None] & (o_row < end)[None, :]
            share, a = _shares(p_parts, p, o_j, o_row, m, rows, slots, parts, SPARSE)
            dot += tl.sum(share * a, 1)
            mass += tl.sum(share, 1)
        mean = tl.math.div_rn(dot, tl.where(mass == 0, 1.0, mass))
        total += tl.sum(share * (a - mean[:, None]), 0)
    out = tl.math.div_rn(total, temperature + tl.zeros_like(total))
    tl.store(p_out + row + o_n, out, mask=row + o_n < end)


@triton.jit(do_not_specialize=["questions", "rows", "count", "slots", "noisy"])
def probabilities(
    p_keys,
    p_indices,
    p_offsets,
    p_temperature,
    p_out,
    questions,
    rows,
    count,
    slots,
    noisy,
    penalty,
    SPARSE: tl.constexpr,
    BJ: tl.constexpr,
    BN: tl.constexpr,
):
    """p of BN candidates in BJ slots."""
    question, _, row, end = question_tile(tl.program_id(0), p_offsets, questions, rows, count, BN)
    if row >= end:
        return
    first, end = question_rows(question, p_offsets, rows, count)
    divisor = tl.where(noisy > 0, 1.0, tl.load(p_temperature))
    j = tl.program_id(1) * BJ
    o_j, slot, key = _slots(p_keys, p_indices, question, first, j, slots, BJ)
    top, norm = _normaliser(p_keys, divisor, first, end, slot, key, penalty, SPARSE, BJ, BN)
    z = _slot_logits(p_keys, divisor, first, end, row - first, slot, key, penalty, BN)
    o_row = row + tl.arange(0, BN)  # [BN]
    m = (o_j < slots)[:, None] & (o_row < end)[None, :]
    p = _relaxed(z, top, norm, SPARSE)
    tl.store(p_out + o_j.to(tl.int64)[:, None] * rows + o_row[None, :], p, mask=m)
