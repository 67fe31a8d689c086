"""Sparsemax on the CPU: Michelot's iteration on all rows of a block at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype
from ..slices import row_slices
from . import reference
from .reference import project, shift_of

_BLOCK = 2**17  # values, so that what is computed stays in the cache


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.forward`; the number of rounds depends on the values."""
    y = torch.empty_like(x)
    bounds = x.new_zeros(x.shape[0], 2, dtype=accumulation_dtype(x))
    if x.numel():
        for rows in row_slices(x.shape[0], x.shape[1], _BLOCK):
            y[rows], bounds[rows] = _project(x[rows])
    return y, bounds


def backward(grad: Tensor, x: Tensor, bounds: Tensor) -> Tensor:
    """As `reference.backward`."""
    out = torch.empty_like(x)
    for rows in row_slices(x.shape[0], x.shape[1], _BLOCK):
        out[rows] = reference.backward(grad[rows], x[rows], bounds[rows])
    return out


def _project(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.to(accumulation_dtype(x))
    shift = shift_of(values)
    values = values - shift
    threshold = torch.full_like(shift, -1.0)
    support = torch.full(shift.shape, x.shape[1] + 1, device=x.device)
    while True:
        above = values > threshold
        count = above.sum(-1, keepdim=True)
        rising = (count < support) & (count > 0)
        if not rising.any():
            break
        # Σ max(z - t, 0) needs no mask and rounds less than Σ z does.
        excess = torch.relu(values - threshold).sum(-1, keepdim=True) - 1
        threshold = torch.where(rising, threshold + excess / count, threshold)
        support = count
    threshold = torch.where(shift < torch.inf, threshold, torch.nan)
    return project(x, values, threshold), torch.cat([shift, threshold], -1)
