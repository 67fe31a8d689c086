"""Straight-through top-k: order and gather in one launch, and a backward that reads memory once.

Forward, a program finds the candidate of its slot by itself, which is cheap, and copies one block
of its columns. Backward, tiles of candidates are multiplied with the gradients of all slots,
`a_jl = ⟨G_j, memory_l⟩`, with the columns split over programs where there are few tiles; a second
kernel adds the parts up and applies the Jacobians of all slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build
from ..cosine_scores.triton import question_rows, question_tile
from ..segments import tile_count
from .reference import TAKEN_PENALTY

_LAST = tl.constexpr(2**31 - 1)
_PROGRAMS = 512  # that fill a large GPU several times over
_LEAST_COLUMNS = 1024  # of one part, so that parts stay below 1% of memory's size for k = 5


@triton.jit
def _gumbel(p_seed, question, columns):
    """Standard Gumbel noise of a question's candidates, as `noise.py` defines it."""
    columns = columns.to(tl.uint32)
    zero = columns * 0
    bits, _, _, _ = tl.philox(tl.load(p_seed), columns, zero + question.to(tl.uint32), zero, zero)
    uniform = ((bits >> 9).to(tl.float64) + 0.5) * 1.1920928955078125e-07  # 2⁻²³
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit(do_not_specialize=["questions", "rows", "count"])
def _noisy(
    p_scores,
    p_offsets,  # None if all questions have `count` candidates
    p_temperature,
    p_seed,
    p_out,
    questions,
    rows,
    count,
    BN: tl.constexpr,
):
    """z of BN candidates."""
    question, i_n, row, end = question_tile(tl.program_id(0), p_offsets, questions, rows, count, BN)
    o_n = tl.arange(0, BN)  # [BN]
    m_n = row + o_n < end
    scores = tl.load(p_scores + row + o_n, mask=m_n, other=0.0)
    temperature = tl.load(p_temperature) + tl.zeros_like(scores)
    noise = _gumbel(p_seed, question, i_n * BN + o_n)
    tl.store(p_out + row + o_n, tl.math.div_rn(scores, temperature) + noise, mask=m_n)


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
def _order(p_keys, p_offsets, p_indices, rows, count, slots, BN: tl.constexpr):
    """Indices of one question."""
    question = tl.program_id(0)
    first, end = question_rows(question, p_offsets, rows, count)
    key, column = float("inf"), -1
    for slot in range(slots):
        key, column = _next(key, column, p_keys, first, end, BN)
        tl.store(p_indices + question * slots + slot, column)


@triton.jit(do_not_specialize=["rows", "count", "units", "slots"])
def _gather(
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


@triton.jit(do_not_specialize=["questions", "rows", "count", "units", "slots", "part_blocks"])
def _weights(
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
    """Numbers of BJ slots from `j` on, their candidates, and those's keys, `[BJ]`."""
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
    """What a candidate counts for in its slot's Jacobian, and ∂L/∂p where that is not 0."""
    p_a = p_parts + o_j.to(tl.int64)[:, None] * rows + o_row[None, :]  # [BJ, BN]
    a = tl.zeros_like(p)
    for i in range(parts):
        a += tl.load(p_a + (i * slots).to(tl.int64) * rows, mask=m, other=0.0)
    share = (p > 0).to(tl.float32) if SPARSE else p
    return share, tl.where(p == 0, 0.0, a)


@triton.jit(do_not_specialize=["questions", "rows", "count", "slots", "parts", "noisy"])
def _jacobian(
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
def _probabilities(
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


@triton.jit(do_not_specialize=["rows", "count", "units", "slots"])
def _scatter(
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


class _Problem:
    """What all launches of a call are about."""

    def __init__(
        self, scores: Tensor, offsets: Tensor | None, temperature: Tensor, seed: Tensor | None
    ) -> None:
        self.offsets = None if offsets is None else offsets.contiguous()
        self.temperature = temperature
        self.noisy = seed is not None
        self.rows = scores.numel()
        self.questions = scores.shape[0] if offsets is None else offsets.numel() - 1
        self.count = scores.shape[1] if offsets is None else 0
        # With offsets the mean: the longest is known to the device alone.
        self.usual = self.rows // max(self.questions, 1)
        self.keys = scores.contiguous()  # what candidates are ordered by
        if seed is not None:
            self.keys = self._noisy(seed)

    def _noisy(self, seed: Tensor) -> Tensor:
        out = torch.empty_like(self.keys)
        if out.numel():
            arrays = (self.keys, self.offsets, self.temperature, seed, out)
            sizes = (self.questions, self.rows, self.count)
            _noisy[(self.tiles(_NOISY["BN"]),)](*arrays, *sizes, **_NOISY, **OPTIONS)
        return out

    def tiles(self, block: int) -> int:
        if self.offsets is not None:
            return tile_count(self.rows, self.questions, block)
        return self.questions * triton.cdiv(self.count, block)


_NOISY = {"BN": 128, "num_warps": 4}


def _unit(columns: int) -> int:
    """Of a multiple of 16 columns the compiler knows that all rows allow 16-byte accesses."""
    return 16 if columns % 16 == 0 else 1


def _order_options(usual: int) -> dict[str, Any]:
    return {"BN": 32, "num_warps": 1} if usual <= 32 else {"BN": 512, "num_warps": 4}


def _gather_options(usual: int, k: int, columns: int) -> dict[str, Any]:
    # Beyond that every block of columns would spend long on finding the order again.
    order = usual <= 2048 and k <= 32
    block = 32 if usual <= 32 or not order else 512
    return {"UNIT": _unit(columns), "ORDER": order, "BN": block, "BD": 2048, "num_warps": 4}


def _weights_options(usual: int, k: int, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    slots = 16 if k <= 16 else 64
    block = 32 if usual <= 32 and slots == 16 else 64
    return {
        "UNIT": _unit(columns),
        "BJ": slots,
        "BN": block,
        "BD": 16 if slots == 64 and dtype.itemsize == 4 else 8192 // (block * dtype.itemsize),
        "STAGES": 4,
        "num_warps": 8,
        "maxnreg": 255 if slots == 16 else None,
    }


def _slot_options(usual: int) -> dict[str, Any]:
    options = {"BN": 32, "num_warps": 2} if usual <= 32 else {"BN": 128, "num_warps": 4}
    return {"BJ": 8, "maxnreg": 255, **options}


def _scatter_options(columns: int) -> dict[str, Any]:
    return {"UNIT": _unit(columns), "BD": 2048, "num_warps": 4}


def forward(
    scores: Tensor,
    memory: Tensor,
    offsets: Tensor | None,
    k: int,
    temperature: Tensor,
    seed: Tensor | None,
    sparse: bool,
    leaky: bool,
) -> tuple[Tensor, Tensor]:
    """See `reference.forward`."""
    problem = _Problem(scores, offsets, temperature, seed)
    memory, columns = memory.contiguous(), memory.shape[1]
    selected = memory.new_empty(problem.questions, k, columns)
    indices = torch.empty(problem.questions, k, dtype=torch.int64, device=scores.device)
    if problem.questions == 0:
        return selected, indices
    options = _gather_options(problem.usual, k, columns)
    if not options["ORDER"] or columns == 0:
        _order[(problem.questions,)](
            problem.keys,
            problem.offsets,
            indices,
            problem.rows,
            problem.count,
            k,
            **_order_options(problem.usual),
            **OPTIONS,
        )
    if columns:
        _gather[(problem.questions * k, triton.cdiv(columns, options["BD"]))](
            problem.keys,
            memory,
            problem.offsets,
            selected,
            indices,
            problem.rows,
            problem.count,
            columns // options["UNIT"],
            k,
            **options,
            **OPTIONS,
        )
    return selected, indices


def backward(
    grad: Tensor,
    scores: Tensor,
    memory: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    temperature: Tensor,
    seed: Tensor | None,
    sparse: bool,
    leaky: bool,
    need_scores: bool,
    need_memory: bool,
) -> tuple[Tensor, Tensor]:
    """See `reference.backward`."""
    problem = _Problem(scores, offsets, temperature, seed)
    grad, memory = grad.contiguous(), memory.contiguous()
    grad_scores, grad_memory = scores.new_empty(0), memory.new_empty(0)
    if need_scores:
        parts = _inner_products(problem, grad, memory)
        grad_scores = _apply_jacobian(problem, parts, indices, sparse, leaky)
    if need_memory:
        grad_memory = torch.zeros_like(memory)
        add_taken(grad_memory, grad, indices, problem.offsets)
    return grad_scores, grad_memory


def _inner_products(problem: _Problem, grad: Tensor, memory: Tensor) -> Tensor:
    """Parts of ⟨G_j, memory_l⟩ that add up to it, float32 `[parts, k, R]`."""
    rows, columns = memory.shape
    k = grad.shape[1]
    if memory.numel() == 0:
        return torch.zeros(1, k, rows, dtype=torch.float32, device=memory.device)
    options = _weights_options(problem.usual, k, columns, memory.dtype)
    tiles, slot_tiles = problem.tiles(options["BN"]), triton.cdiv(k, options["BJ"])
    parts = max(min(_PROGRAMS // (tiles * slot_tiles), columns // _LEAST_COLUMNS), 1)
    blocks = triton.cdiv(columns, options["BD"])
    part_blocks = triton.cdiv(blocks, parts)
    parts = triton.cdiv(blocks, part_blocks)
    out = torch.empty(parts, k, rows, dtype=torch.float32, device=memory.device)
    _weights[(tiles, parts, slot_tiles)](
        grad,
        memory,
        problem.offsets,
        out,
        problem.questions,
        rows,
        problem.count,
        columns // options["UNIT"],
        k,
        part_blocks,
        **options,
        **OPTIONS,
    )
    return out


def _apply_jacobian(
    problem: _Problem, parts: Tensor, indices: Tensor, sparse: bool, leaky: bool
) -> Tensor:
    """Gradient of the scores from parts of ∂L/∂p, `[parts, k, R]`."""
    out = torch.empty_like(problem.keys)
    if out.numel() == 0:
        return out
    options = _slot_options(problem.usual)
    _jacobian[(problem.tiles(options["BN"]),)](
        parts,
        problem.keys,
        indices,
        problem.offsets,
        problem.temperature,
        out,
        problem.questions,
        problem.rows,
        problem.count,
        indices.shape[1],
        parts.shape[0],
        int(problem.noisy),
        TAKEN_PENALTY if leaky else -float("inf"),
        SPARSE=sparse,
        **options,
        **OPTIONS,
    )
    return out


def add_taken(total: Tensor, grad: Tensor, indices: Tensor, offsets: Tensor | None) -> None:
    """See `reference.add_taken`."""
    questions, k, columns = grad.shape
    if grad.numel() == 0 or total.numel() == 0:
        return
    grad = grad.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    count = total.shape[0] // questions  # used without offsets
    options = _scatter_options(columns)
    _scatter[(questions * k, triton.cdiv(columns, options["BD"]))](
        grad,
        indices,
        offsets,
        total,
        total.shape[0],
        count,
        columns // options["UNIT"],
        k,
        **options,
        **OPTIONS,
    )


def probabilities(
    scores: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    temperature: Tensor,
    seed: Tensor | None,
    sparse: bool,
    leaky: bool,
) -> Tensor:
    """See `reference.probabilities`."""
    problem = _Problem(scores, offsets, temperature, seed)
    k = indices.shape[1]
    out = torch.empty(k, problem.rows, dtype=torch.float32, device=scores.device)
    if out.numel() == 0:
        return out
    options = _slot_options(problem.usual)
    _probabilities[(problem.tiles(options["BN"]), triton.cdiv(k, options["BJ"]))](
        problem.keys,
        indices,
        problem.offsets,
        temperature,
        out,
        problem.questions,
        problem.rows,
        problem.count,
        k,
        int(problem.noisy),
        TAKEN_PENALTY if leaky else -float("inf"),
        SPARSE=sparse,
        **options,
        **OPTIONS,
    )
    return out


def probabilities_backward(
    grad: Tensor,
    scores: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    temperature: Tensor,
    seed: Tensor | None,
    sparse: bool,
    leaky: bool,
) -> Tensor:
    """See `reference.probabilities_backward`."""
    problem = _Problem(scores, offsets, temperature, seed)
    return _apply_jacobian(problem, grad.float().contiguous()[None], indices, sparse, leaky)


def builds(architecture: int) -> Iterator[Build]:
    """What the launchers above compile; see `clara_kernels.builds`."""
    del architecture  # the same for all
    for dtype, columns, ragged in product(_DTYPES, (32768, 33), (False, True)):
        yield from _memory_builds(dtype, columns, ragged)
    for ragged in (False, True):
        note = "ragged" if ragged else "dense"
        keys = {"p_keys": "*fp32", "p_temperature": "*fp32", "p_indices": "*i64", "p_out": "*fp32"}
        keys |= {"p_parts": "*fp32", "p_scores": "*fp32", "p_seed": "*i64", "penalty": "fp32"}
        yield _build(_noisy, keys, ragged, _NOISY, note)
        for usual in (20, 1000):
            yield _build(_order, keys, ragged, _order_options(usual), note)
            for sparse in (False, True):
                options = {"SPARSE": sparse, **_slot_options(usual)}
                yield _build(_jacobian, keys, ragged, options, note)
                yield _build(_probabilities, keys, ragged, options, note)


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _memory_builds(dtype: torch.dtype, columns: int, ragged: bool) -> Iterator[Build]:
    note = f"{TYPE_NAMES[dtype]}, {'ragged' if ragged else 'dense'}"
    types = dict.fromkeys(("p_memory", "p_grad", "p_selected", "p_out"), f"*{TYPE_NAMES[dtype]}")
    types |= {"p_keys": "*fp32", "p_parts": "*fp32", "p_indices": "*i64"}
    for usual in (20, 1000, 3000):
        yield _build(_gather, types, ragged, _gather_options(usual, 5, columns), note)
    for usual, k in ((20, 5), (1000, 5), (1000, 100)):
        options = _weights_options(usual, k, columns, dtype)
        yield _build(_weights, types, ragged, options, note, tensor_cores=dtype.itemsize == 2)
    yield _build(_scatter, types, ragged, _scatter_options(columns), note)


def _build(
    kernel: Any,
    types: dict[str, str],
    ragged: bool,
    options: dict[str, Any],
    note: str,
    tensor_cores: bool = False,
) -> Build:
    """A build with those of `types` that the kernel has; its other parameters are sizes."""
    constants = dict(options)
    warps, registers = constants.pop("num_warps"), constants.pop("maxnreg", None)
    types = {"p_offsets": "*i32", **types}
    if not ragged:
        constants["p_offsets"] = None
    names = [name for name in kernel.arg_names if name not in constants]
    types = {name: types.get(name, "i32") for name in names}
    return Build(
        kernel, types, constants, warps, registers=registers, note=note, tensor_cores=tensor_cores
    )
