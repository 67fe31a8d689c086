"""Sparsemax without a sort, by Michelot's iteration: rows in registers, or long ones in passes.

With z = x - max x, the threshold t solves Σ max(z - t, 0) = 1. From t = -1, which no solution lies
below, t ← (Σ_{z > t} z - 1) / |{z > t}| rises until the support stays as it is: exact, after 3 to
11 rounds usually (Michelot, 1986).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build, architecture_of

_PASS_BLOCK = 8192


@triton.jit
def _above(z, threshold):
    """Count and sum of what lies above the threshold."""
    m_above = z > threshold
    return tl.sum(m_above.to(tl.int32)), tl.sum(tl.where(m_above, z, 0.0))


@triton.jit
def _finite_or_zero(top):
    """What rows are shifted by: their maximum, unless that is infinite."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit(do_not_specialize=["units"])
def _forward(p_x, p_y, p_bounds, units, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """One row. Bounds: what the row is shifted by, and the threshold after that."""
    columns = units * UNIT
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK)
    m_n = o_n < columns
    x = tl.load(p_x + row * columns + o_n, mask=m_n, other=-float("inf")).to(tl.float32)  # [BLOCK]
    top = tl.max(x)
    shift = _finite_or_zero(top)
    z = x - shift
    broken = (tl.sum((z != z).to(tl.int32)) > 0) | (top == float("inf"))

    threshold = -1.0
    support = columns + 1
    rising = True
    while rising:
        count, total = _above(z, threshold)
        rising = (count < support) & (count > 0)
        if rising:
            threshold = tl.math.div_rn(total - 1.0, count.to(tl.float32))
        support = count
    threshold = tl.where(broken, float("nan"), threshold)

    y = tl.where(z <= threshold, 0.0, z - threshold)  # NaN where the threshold is
    y = tl.where(z == -float("inf"), 0.0, y)
    tl.store(p_y + row * columns + o_n, y, mask=m_n)
    tl.store(p_bounds + row * 2, shift)
    tl.store(p_bounds + row * 2 + 1, threshold)


@triton.jit(do_not_specialize=["units"])
def _forward_long(p_x, p_y, p_bounds, units, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """As `_forward`, reading the row once per round; after the first it is in the cache."""
    columns = units * UNIT
    row = tl.program_id(0).to(tl.int64)
    p_x += row * columns
    o_n = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    nans = tl.zeros([BLOCK], tl.int32)
    for o in range(0, columns, BLOCK):
        x = tl.load(p_x + o + o_n, mask=o + o_n < columns, other=-float("inf")).to(tl.float32)
        nans += (x != x).to(tl.int32)
        highest = tl.maximum(highest, x)
    top = tl.max(highest)
    shift = _finite_or_zero(top)
    broken = (tl.sum(nans) > 0) | (top == float("inf"))

    threshold = -1.0
    support = columns + 1
    rising = True
    while rising:
        counts = tl.zeros([BLOCK], tl.int32)
        totals = tl.zeros([BLOCK], tl.float32)
        for o in range(0, columns, BLOCK):
            x = tl.load(p_x + o + o_n, mask=o + o_n < columns, other=-float("inf")).to(tl.float32)
            m_above = x - shift > threshold
            counts += m_above.to(tl.int32)
            totals += tl.where(m_above, x - shift, 0.0)
        count = tl.sum(counts)
        rising = (count < support) & (count > 0)
        if rising:
            threshold = tl.math.div_rn(tl.sum(totals) - 1.0, count.to(tl.float32))
        support = count
    threshold = tl.where(broken, float("nan"), threshold)

    for o in range(0, columns, BLOCK):
        m_n = o + o_n < columns
        z = tl.load(p_x + o + o_n, mask=m_n, other=-float("inf")).to(tl.float32) - shift
        y = tl.where(z <= threshold, 0.0, z - threshold)
        y = tl.where(z == -float("inf"), 0.0, y)
        tl.store(p_y + row * columns + o + o_n, y, mask=m_n)
    tl.store(p_bounds + row * 2, shift)
    tl.store(p_bounds + row * 2 + 1, threshold)


@triton.jit
def _in_support(p_x, shift, threshold, m_n):
    """Entries with a gradient; all of a row whose threshold is NaN, but for the masked."""
    z = tl.load(p_x, mask=m_n, other=-float("inf")).to(tl.float32) - shift
    return tl.where(z <= threshold, False, z != -float("inf"))


@triton.jit(do_not_specialize=["units"])
def _backward(p_grad, p_x, p_bounds, p_out, units, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """∂L/∂x = g - mean(g) over the support, one row."""
    columns = units * UNIT
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK)
    m_n = o_n < columns
    shift, threshold = tl.load(p_bounds + row * 2), tl.load(p_bounds + row * 2 + 1)
    m_support = _in_support(p_x + row * columns + o_n, shift, threshold, m_n)
    g = tl.load(p_grad + row * columns + o_n, mask=m_n, other=0.0).to(tl.float32)
    count = tl.maximum(tl.sum(m_support.to(tl.int32)), 1)
    mean = tl.math.div_rn(tl.sum(tl.where(m_support, g, 0.0)), count.to(tl.float32))
    mean = tl.where(threshold != threshold, float("nan"), mean)
    tl.store(p_out + row * columns + o_n, tl.where(m_support, g - mean, 0.0), mask=m_n)


@triton.jit(do_not_specialize=["units"])
def _backward_long(p_grad, p_x, p_bounds, p_out, units, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """As `_backward`, in two passes."""
    columns = units * UNIT
    row = tl.program_id(0).to(tl.int64)
    p_x += row * columns
    p_grad += row * columns
    o_n = tl.arange(0, BLOCK)
    shift, threshold = tl.load(p_bounds + row * 2), tl.load(p_bounds + row * 2 + 1)
    counts = tl.zeros([BLOCK], tl.int32)
    totals = tl.zeros([BLOCK], tl.float32)
    for o in range(0, columns, BLOCK):
        m_n = o + o_n < columns
        m_support = _in_support(p_x + o + o_n, shift, threshold, m_n)
        g = tl.load(p_grad + o + o_n, mask=m_n, other=0.0).to(tl.float32)
        counts += m_support.to(tl.int32)
        totals += tl.where(m_support, g, 0.0)
    count = tl.maximum(tl.sum(counts), 1)
    mean = tl.math.div_rn(tl.sum(totals), count.to(tl.float32))
    mean = tl.where(threshold != threshold, float("nan"), mean)
    for o in range(0, columns, BLOCK):
        m_n = o + o_n < columns
        m_support = _in_support(p_x + o + o_n, shift, threshold, m_n)
        g = tl.load(p_grad + o + o_n, mask=m_n, other=0.0).to(tl.float32)
        out = tl.where(m_support, g - mean, 0.0)
        tl.store(p_out + row * columns + o + o_n, out, mask=m_n)


def _widest_block(architecture: int, unit: int) -> int:
    """Columns that the registers hold beside what is computed with them."""
    if unit == 1:  # more addresses
        return 8192
    return 16384 if architecture >= 100 else 32768


def _options(columns: int, architecture: int) -> tuple[bool, dict[str, Any]]:
    """Whether a row is read in passes, and what its kernel is launched with."""
    # Of a multiple of 16 columns the compiler knows that all rows allow 16-byte accesses.
    unit = 16 if columns % 16 == 0 else 1
    if columns > _widest_block(architecture, unit):
        return True, {"UNIT": unit, "BLOCK": _PASS_BLOCK, "num_warps": 32}
    block = max(triton.next_power_of_2(columns), 128)
    # 32 values a thread: enough loads in flight, and several rows on a multiprocessor.
    return False, {"UNIT": unit, "BLOCK": block, "num_warps": min(max(block // 1024, 1), 32)}


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Projection of the rows of x `[R, N]`, and their bounds, float32 `[R, 2]`."""
    rows, columns = x.shape
    x = x.contiguous()
    y = torch.empty_like(x)
    bounds = torch.empty(rows, 2, dtype=torch.float32, device=x.device)
    if x.numel():
        long, options = _options(columns, architecture_of(x.device))
        kernel = _forward_long if long else _forward
        kernel[(rows,)](x, y, bounds, columns // options["UNIT"], **options, **OPTIONS)
    return y, bounds


def backward(grad: Tensor, x: Tensor, bounds: Tensor) -> Tensor:
    """∂L/∂x `[R, N]` in the dtype of x."""
    rows, columns = x.shape
    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        long, options = _options(columns, architecture_of(x.device))
        kernel = _backward_long if long else _backward
        kernel[(rows,)](grad, x, bounds, out, columns // options["UNIT"], **options, **OPTIONS)
    return out


def builds(architecture: int) -> Iterator[Build]:
    """All that the launchers above compile; see `clara_kernels.builds`."""
    widths = [2**n for n in range(7, 17)]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = f"*{TYPE_NAMES[dtype]}"
        for columns in [*widths, *(width - 1 for width in widths)]:
            long, options = _options(columns, architecture)
            constants = {name: options[name] for name in ("UNIT", "BLOCK")}
            rest = {"p_bounds": "*fp32", "units": "i32"}
            note = f"{TYPE_NAMES[dtype]}, {columns} columns"
            for kernel, types in (
                (_forward_long if long else _forward, {"p_x": x, "p_y": x}),
                (_backward_long if long else _backward, {"p_grad": x, "p_x": x, "p_out": x}),
            ):
                yield Build(kernel, {**types, **rest}, constants, options["num_warps"], note=note)
