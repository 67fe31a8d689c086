"""Rows as int8 codes, with a bound on what that changes about a score.

A row c is divided by its norm, though a row of zeros stays. A center m that all rows share is taken
away from it. What is left is coded: c/|c| = m + scale · codes + r. For a query u of norm 1 the
cosine is then

    ⟨u, c⟩/|c| = ⟨u, m⟩ + scale · ⟨u, codes⟩ + ⟨u, r⟩.

The first part is the same for all rows, the second is what a search of int8 rows computes, and the
third is bounded. With e the direction of m,

    |⟨u, r⟩| ≤ |⟨u, e⟩| |⟨e, r⟩| + |u - ⟨u, e⟩e| |r|.

Memory of one model points much the same way. What is left of a row is shorter than the row then,
and so is what is left of a query. That makes the bound several times smaller than without a center.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..slices import row_slices

_VALUES = 1 << 20  # of rows that are coded at a time
_MOST = 127  # of a code
_HALF = 0.5  # keeps products within ±1, where the kernels cut off: |c/|c| - m| is at most 2
_ROUNDING = 2.0**-23
_SAFETY = 1e-6  # of norm 1, beyond what is computed in float32


@dataclass(frozen=True)
class RowCodes:
    """Rows `[N, D]` as codes.

    Attributes:
        codes: int8 `[N, D]`.
        factors: float32 `[N]`, half the scale of each row.
        errors: float32 `[N]`, the most that |r| is.
        along: the most that |⟨e, r⟩| is of any row.
        reach: the most that scale · |codes| is of any row.
    """

    codes: Tensor
    factors: Tensor
    errors: Tensor
    along: float
    reach: float


def center_of(rows: Tensor) -> Tensor:
    """The mean of rows divided by their norms, float32 `[D]`; zeros if there is no row.

    Args:
        rows: `[N, D]`, float32, float16 or bfloat16. A sample does: any center is right.
    """
    if not len(rows):
        return torch.zeros(rows.shape[1])
    return _of_norm_one(rows.float()).mean(0, dtype=torch.float64).float()


def encode_rows(rows: Tensor, center: Tensor) -> RowCodes:
    """Code rows.

    Args:
        rows: `[N, D]`, float32, float16 or bfloat16, finite, on the CPU.
        center: float32 `[D]`, of `center_of`.
    """
    count, width = rows.shape
    codes = torch.empty(count, width, dtype=torch.int8)
    factors, errors = torch.empty(count), torch.empty(count)
    along = reach = 0.0
    direction = center / center.norm().clamp(min=torch.finfo(torch.float32).tiny)
    wide = 1 + (width + 64) * _ROUNDING  # of sums of so many values
    for part in row_slices(count, width, _VALUES):
        left = _of_norm_one(rows[part].float()) - center
        scales = left.abs().amax(1) / _MOST
        scales[scales < torch.finfo(torch.float32).tiny] = 0
        safe = torch.where(scales > 0, scales, 1.0)
        near = (left / safe[:, None]).round().clamp(-_MOST, _MOST)
        changed = left - near * scales[:, None]
        size = changed.norm(dim=1) * wide
        codes[part] = near.to(torch.int8)
        factors[part] = scales * _HALF
        errors[part] = size + _SAFETY
        if len(left):
            lean = (changed @ direction).abs() + size * width * _ROUNDING
            along = max(along, float(lean.max()) + _SAFETY)
            reach = max(reach, float((near.norm(dim=1) * scales).max()) * wide)
    return RowCodes(codes, factors, errors, along, reach)


def _of_norm_one(rows: Tensor) -> Tensor:
    """Rows by their norms; zeros stay. The largest value is divided by first, as its square may be
    beyond float32."""
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return rows / norms.clamp(min=1e-30).float()
