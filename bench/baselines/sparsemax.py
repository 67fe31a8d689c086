"""Sparsemax as it is usually written: sort the row, find the support, subtract the threshold.

And what others publish of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sorted_sparsemax(x: Tensor) -> Tensor:
    """Sparsemax of the last dimension, differentiable."""
    return _SortedSparsemax.apply(x)


def entmax_sparsemax(x: Tensor) -> Tensor:
    """sparsemax of the package entmax, which sorts."""
    from entmax import sparsemax

    return sparsemax(x, dim=-1)


def liger_sparsemax(x: Tensor) -> Tensor:
    """sparsemax of Liger-Kernel: a sort by PyTorch and a Triton kernel."""
    from liger_kernel.ops.sparsemax import LigerSparsemaxFunction

    return LigerSparsemaxFunction.apply(x, -1)


class _SortedSparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        values = x.float()
        values = values - values.amax(-1, keepdim=True)
        ordered = values.sort(dim=-1, descending=True).values
        sums = ordered.cumsum(-1) - 1
        rank = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=torch.float32)
        support = (rank * ordered > sums).sum(-1, keepdim=True)
        threshold = sums.gather(-1, support - 1) / support
        result = (values - threshold).clamp(min=0).to(x.dtype)
        ctx.save_for_backward(support, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        support, result = ctx.saved_tensors
        grad = grad.masked_fill(result == 0, 0)
        mean = grad.sum(-1, keepdim=True, dtype=torch.float32) / support
        return torch.where(result == 0, 0, grad - mean.to(grad.dtype))
