"""The public `memory_alignment_loss` and its registration with the dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import (
    refuse_transforms,
    require_choice,
    require_floating,
    require_memory_counts,
    require_offsets,
    require_same_device,
    require_shape,
)
from ..dispatch import Arguments, declare, register_gradient
from ..ragged import accumulation_dtype
from . import cpu, reference


def memory_alignment_loss(
    hidden: Tensor,
    cu_seqlens: Tensor,
    n_memory: int | Tensor,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Squared distance between each document's mean token state and mean memory state.

    The loss is the average over all packed documents. It is the MSE term of CLaRa's compression
    loss (arXiv 2511.18659).

    Args:
        hidden: `[T, H]`, packed last-layer states, any floating-point dtype. Each document is its
            token rows followed by its memory rows.
        cu_seqlens: int32 `[N + 1]`; document `i` is rows `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
        n_memory: number of memory rows of every document, or int32 `[N]`, one number each.
        reduction: over H, "mean" (as in the reference implementation) or "sum" (as the paper
            writes it).

    `cu_seqlens` and `n_memory` are checked on the CPU only, because a check on a GPU would wait
    for it. There, rows before the first and after the last document do not count and get a zero
    gradient, a document without token rows or memory rows makes the loss NaN, and decreasing
    offsets give undefined results.

    Returns:
        Scalar loss, float32 (float64 for float64 `hidden`), accumulated in that dtype,
        differentiable once in `hidden`. `hidden` is not kept for backward. The same input gives
        the same bits, gradient included (except float64 on a GPU).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: shapes or devices do not match, there is no document, or a document has no
            token rows or no memory rows; the message names it.

    Examples:
        >>> import torch
        >>> from clara_kernels import memory_alignment_loss
        >>> hidden = torch.tensor([[0.0], [2.0], [4.0], [1.0], [1.0]])  # two documents
        >>> cu_seqlens = torch.tensor([0, 3, 5], dtype=torch.int32)
        >>> memory_alignment_loss(hidden, cu_seqlens, 1)  # ((1 - 4)² + (1 - 1)²) / 2
        tensor(4.5000)
    """
    refuse_transforms("memory_alignment_loss", hidden)
    require_floating("hidden", hidden)
    is_matrix = hidden.dim() == 2 and hidden.shape[1] >= 1
    require_shape("hidden", hidden, "[T, H] with H of at least 1", is_matrix)
    require_offsets("cu_seqlens", cu_seqlens, hidden.shape[0], "hidden")
    require_same_device("cu_seqlens", cu_seqlens, "hidden", hidden)
    require_choice("reduction", reduction, ("mean", "sum"))
    counts = require_memory_counts(n_memory, cu_seqlens, "hidden")
    mean = reduction == "mean"
    loss, _ = torch.ops.clara.memory_alignment_loss(hidden, cu_seqlens, counts, mean)
    return loss


def _fake(
    hidden: Tensor, cu_seqlens: Tensor, n_memory: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(hidden)
    shape = (cu_seqlens.shape[0] - 1, hidden.shape[1])
    return hidden.new_empty((), dtype=dtype), hidden.new_empty(shape, dtype=dtype)


def _fake_backward(
    grad: Tensor,
    difference: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    rows: int,
    dtype: torch.dtype,
    mean: bool,
) -> Tensor:
    return difference.new_empty((rows, difference.shape[1]), dtype=dtype)


declare(
    "memory_alignment_loss",
    "(Tensor hidden, Tensor cu_seqlens, Tensor n_memory, bool mean) "
    "-> (Tensor loss, Tensor difference)",
    fake=_fake,
    reference=reference.forward,
    cpu=cpu.forward,
    triton="memory_alignment_loss.triton:forward",
)
declare(
    "memory_alignment_loss_backward",
    "(Tensor grad, Tensor difference, Tensor cu_seqlens, Tensor n_memory, SymInt rows, "
    "ScalarType dtype, bool mean) -> Tensor",
    fake=_fake_backward,
    reference=reference.backward,
    cpu=cpu.backward,
    triton="memory_alignment_loss.triton:backward",
)


def _for_backward(given: Arguments, output: Arguments) -> Arguments:
    hidden, cu_seqlens, n_memory, mean = given
    return output[1], cu_seqlens, n_memory, hidden.shape[0], hidden.dtype, mean


register_gradient("memory_alignment_loss", _for_backward)
