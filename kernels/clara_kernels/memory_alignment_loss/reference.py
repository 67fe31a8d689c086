"""Squared distance between the mean document state and the mean memory state."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype


def memory_alignment_loss_reference(
    hidden: Tensor, cu_seqlens: Tensor, n_memory: int | Tensor, reduction: str = "mean"
) -> Tensor:
    """See `clara_kernels.memory_alignment_loss`. Differentiable by autograd."""
    counts = torch.as_tensor(n_memory, device=hidden.device)
    return forward(hidden, cu_seqlens, counts, reduction == "mean")[0]


def row_weights(
    cu_seqlens: Tensor, n_memory: Tensor, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What each row adds to the difference of means, and of which document.

    Returns:
        int64 `[T]` document, N for a row that belongs to none, and `[T]` weights in `dtype`:
        1 / token rows and -1 / memory rows.
    """
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    row = torch.arange(rows, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(ends, row, right=True)
    document = document.masked_fill(row < starts[0], ends.numel())
    for_tokens = pad_row(1 / (ends - starts - n_memory).to(dtype))
    for_memory = pad_row((-1 / n_memory.to(dtype)).expand(ends.numel()))
    is_token = row < pad_row(ends - n_memory)[document]
    return document, torch.where(is_token, for_tokens[document], for_memory[document])


def pad_row(x: Tensor) -> Tensor:
    """With zeros after the last row, for what is in no document."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])


def nan_if_incomplete(difference: Tensor, cu_seqlens: Tensor, n_memory: Tensor) -> Tensor:
    """NaN, as the mean of nothing is, for documents without token rows or memory rows."""
    complete = (n_memory > 0) & (cu_seqlens.diff() > n_memory)
    return difference.masked_fill(~complete[:, None], torch.nan)


def mean_distance(difference: Tensor, mean: bool) -> Tensor:
    """The loss of differences `[N, H]`."""
    squares = difference.square()
    return (squares.mean(-1) if mean else squares.sum(-1)).mean()


def share(difference: Tensor, mean: bool) -> float:
    """What the squared entries of `difference` are multiplied with in the loss."""
    return 1 / (difference.numel() if mean else difference.shape[0])


def forward(
    hidden: Tensor, cu_seqlens: Tensor, n_memory: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    """What the operator computes: the loss, and differences of means `[N, H]`."""
    dtype = accumulation_dtype(hidden)
    document, weights = row_weights(cu_seqlens, n_memory, hidden.shape[0], dtype)
    difference = hidden.new_zeros(cu_seqlens.numel(), hidden.shape[1], dtype=dtype)
    difference = difference.index_add(0, document, hidden.to(dtype) * weights[:, None])
    difference = nan_if_incomplete(difference[:-1], cu_seqlens, n_memory)
    return mean_distance(difference, mean), difference


def backward(
    grad: Tensor,
    difference: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    rows: int,
    dtype: torch.dtype,
    mean: bool,
) -> Tensor:
    """∂L/∂hidden `[rows, H]` in `dtype`."""
    document, weights = row_weights(cu_seqlens, n_memory, rows, difference.dtype)
    scaled = pad_row(difference * (2 * share(difference, mean) * grad))
    return (scaled[document] * weights[:, None]).to(dtype)
