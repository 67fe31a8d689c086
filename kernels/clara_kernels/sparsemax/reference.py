"""Sparsemax by sorting (Martins and Astudillo, 2016, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype


def sparsemax_reference(x: Tensor, dim: int = -1) -> Tensor:
    """See `clara_kernels.sparsemax`. Differentiable by autograd."""
    if x.numel() == 0:
        return x.clone()
    values = x.to(accumulation_dtype(x)).movedim(dim, -1)
    # The projection does not change when a row is shifted; near 0 the sums below keep precision.
    values = values - shift_of(values.detach())
    projection = torch.relu(values - threshold_of(values)).movedim(-1, dim)
    return projection.masked_fill(x == -torch.inf, 0.0).to(x.dtype)


def shift_of(values: Tensor) -> Tensor:
    """The maximum of each row, 0 where all is masked, `[..., 1]`."""
    top = values.amax(-1, keepdim=True)
    return torch.where(top == -torch.inf, 0.0, top)


def threshold_of(values: Tensor) -> Tensor:
    """t with Σ max(values - t, 0) = 1 for each shifted row, `[..., 1]`."""
    ordered = values.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    rank = torch.arange(1, values.shape[-1] + 1, device=values.device)
    support = (1 + rank * ordered > sums).sum(-1, keepdim=True).clamp(min=1)
    return (sums.gather(-1, support - 1) - 1) / support


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """What the operator computes: rows `[R, N]` projected, and `[R, 2]` shift and threshold."""
    if x.numel() == 0:
        return torch.empty_like(x), x.new_zeros(x.shape[0], 2, dtype=accumulation_dtype(x))
    values = x.to(accumulation_dtype(x))
    shift = shift_of(values)
    threshold = threshold_of(values - shift)
    return project(x, values - shift, threshold), torch.cat([shift, threshold], -1)


def project(x: Tensor, shifted: Tensor, threshold: Tensor) -> Tensor:
    return torch.relu(shifted - threshold).masked_fill(x == -torch.inf, 0.0).to(x.dtype)


def backward(grad: Tensor, x: Tensor, bounds: Tensor) -> Tensor:
    """∂L/∂x: g - mean(g) over the support, 0 elsewhere."""
    shift, threshold = bounds[:, :1], bounds[:, 1:]
    values = x.to(bounds.dtype)
    support = (values - shift > threshold) | (threshold.isnan() & (values != -torch.inf))
    grad = grad.to(bounds.dtype)
    mean = torch.where(support, grad, 0.0).sum(-1, keepdim=True)
    mean = mean / support.sum(-1, keepdim=True).clamp(min=1) + 0 * threshold
    return torch.where(support, grad - mean, 0.0).to(x.dtype)
