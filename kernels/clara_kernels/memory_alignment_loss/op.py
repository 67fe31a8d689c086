"""The public `memory_alignment_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import (
    require_choice,
    require_floating,
    require_offsets,
    require_positive_int,
    require_same_device,
    require_shape,
)
from .reference import memory_alignment_loss_reference


def memory_alignment_loss(
    hidden: Tensor,
    cu_seqlens: Tensor,
    n_memory: int | Tensor,
    *,
    reduction: str = "mean",
) -> Tensor:
    """How far the memory of each packed document lies from the document it stands for.

    For every document the squared distance between the mean of its token rows and the mean of
    its memory rows, averaged over the documents: the MSE term of CLaRa's compression loss
    (arXiv 2511.18659).

    Args:
        hidden: `[T, H]`, packed last-layer states, any floating-point dtype. Each document is its
            token rows followed by its memory rows.
        cu_seqlens: int32 `[N + 1]`; document `i` is rows `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
            The values are read on the host.
        n_memory: memory rows of every document, or int32 `[N]`, one number each.
        reduction: over H, "mean" (as in the reference implementation) or "sum" (as the paper
            writes it).

    Returns:
        Scalar loss, float32 (float64 for float64 `hidden`), accumulated in that dtype.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: shapes or devices that do not go together, no document at all, or a document
            without token rows or memory rows; the message names it.
    """
    require_floating("hidden", hidden)
    is_matrix = hidden.dim() == 2 and hidden.shape[1] >= 1
    require_shape("hidden", hidden, "[T, H] with H of at least 1", is_matrix)
    require_offsets("cu_seqlens", cu_seqlens, hidden.shape[0], "hidden")
    require_same_device("cu_seqlens", cu_seqlens, "hidden", hidden)
    require_choice("reduction", reduction, ("mean", "sum"))
    count = cu_seqlens.numel() - 1
    if count == 0:
        raise ValueError("cu_seqlens must hold at least one document, got [0]")
    if isinstance(n_memory, Tensor):
        if n_memory.dtype != torch.int32:
            raise TypeError(f"n_memory must be an int or int32, got {n_memory.dtype}")
        require_shape("n_memory", n_memory, f"[{count}]", n_memory.shape == (count,))
        require_same_device("n_memory", n_memory, "hidden", hidden)
        per_document = n_memory.tolist()
    else:
        require_positive_int("n_memory", n_memory)
        per_document = [n_memory] * count
    _check_documents(cu_seqlens.diff().tolist(), per_document)
    return memory_alignment_loss_reference(hidden, cu_seqlens, n_memory, reduction)


def _check_documents(lengths: list[int], n_memory: list[int]) -> None:
    for document, (length, memory) in enumerate(zip(lengths, n_memory, strict=True)):
        if memory < 1:
            raise ValueError(f"n_memory must be at least 1, got {memory} for document {document}")
        if length <= memory:
            raise ValueError(
                f"cu_seqlens must leave every document at least one token row: document "
                f"{document} has {length} rows, of which n_memory takes {memory}"
            )
