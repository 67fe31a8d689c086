"""Sparsemax on the CPU: Michelot's iteration on all rows at once, several times a sort's speed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype
from .reference import project, shift_of


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.forward`; the number of rounds depends on the values."""
    if x.numel() == 0:
        return torch.empty_like(x), x.new_zeros(x.shape[0], 2, dtype=accumulation_dtype(x))
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
