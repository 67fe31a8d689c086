"""Sparsemax by sorting (Martins and Astudillo, 2016, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype


def sparsemax_reference(x: Tensor, dim: int = -1) -> Tensor:
    """See `clara_kernels.sparsemax`. Differentiable by autograd."""
    if x.numel() == 0:
        return x.clone()
    masked = x == -torch.inf
    values = x.to(accumulation_dtype(x)).movedim(dim, -1)
    # The projection does not change when a row is shifted; near 0 the sums below keep precision.
    top = values.detach().amax(-1, keepdim=True)
    values = values - torch.where(top == -torch.inf, 0.0, top)

    ordered = values.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    rank = torch.arange(1, values.shape[-1] + 1, device=x.device)
    support = (1 + rank * ordered > sums).sum(-1, keepdim=True).clamp(min=1)
    threshold = (sums.gather(-1, support - 1) - 1) / support

    projection = torch.relu(values - threshold).movedim(-1, dim)
    return projection.masked_fill(masked, 0.0).to(x.dtype)
