"""Squared distance between the mean document state and the mean memory state."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype


def memory_alignment_loss_reference(
    hidden: Tensor, cu_seqlens: Tensor, n_memory: int | Tensor, reduction: str = "mean"
) -> Tensor:
    """See `clara_kernels.memory_alignment_loss`. Differentiable by autograd."""
    dtype = accumulation_dtype(hidden)
    ends = cu_seqlens[1:].long()
    lengths = cu_seqlens.diff().long()
    memory = torch.as_tensor(n_memory, device=hidden.device).long().expand_as(lengths)
    document = torch.repeat_interleave(
        torch.arange(lengths.numel(), device=hidden.device), lengths, output_size=hidden.shape[0]
    )
    is_memory = torch.arange(hidden.shape[0], device=hidden.device) >= (ends - memory)[document]
    # Summing the rows with these weights leaves mean(document rows) - mean(memory rows).
    per_document = 1 / (lengths - memory).to(dtype)
    per_memory = -1 / memory.to(dtype)
    weights = torch.where(is_memory, per_memory[document], per_document[document])

    difference = hidden.new_zeros(lengths.numel(), hidden.shape[1], dtype=dtype)
    difference = difference.index_add(0, document, hidden.to(dtype) * weights[:, None])  # [N, H]
    squares = difference.square()
    distance = squares.mean(-1) if reduction == "mean" else squares.sum(-1)
    return distance.mean()
