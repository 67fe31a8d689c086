"""Ranking and selecting as one operator, composed of the parts of both operators.

`cosine` and `selection` below are two modules that compute `cosine_scores` and `select_topk`: the
references, or the kernels. Forward reads all memory once, and what is selected again. Backward
reads it twice: the gradient of a score depends on the inner products of all slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..select_topk.options import Options


def forward(
    cosine: Any,
    selection: Any,
    query: Tensor,
    memory: Tensor,
    offsets: Tensor | None,
    k: int,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Selected memory, indices, scores, and what `cosine_scores` saves.

    Args:
        query: `[B, D]`.
        memory: `[B, N, D]`, or `[ΣN, D]` with offsets.
    """
    memory = memory.contiguous()
    scores, query_inverse, document_inverse = cosine.forward(query, memory, offsets)
    selected, indices = selection.forward(scores, memory.flatten(0, -2), offsets, k, options)
    return selected, indices, scores, query_inverse, document_inverse


def backward(
    cosine: Any,
    selection: Any,
    grad: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    indices: Tensor,
    scores: Tensor,
    query_inverse: Tensor,
    document_inverse: Tensor,
    offsets: Tensor | None,
    options: Options,
    need_query: bool,
    need_memory: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of query and memory; one that is not needed is an empty tensor."""
    memory = memory.contiguous()
    rows = memory.flatten(0, -2)
    if grad is not None:
        through_slots, _ = selection.backward(
            grad, scores, rows, indices, offsets, options, True, False
        )
        grad_scores = through_slots if grad_scores is None else through_slots + grad_scores
    if grad_scores is None:
        grad_scores = torch.zeros_like(scores)
    grad_query, grad_memory = cosine.backward(
        grad_scores,
        query,
        memory,
        offsets,
        scores,
        query_inverse,
        document_inverse,
        need_query,
        need_memory,
    )
    if need_memory and grad is not None:
        selection.add_taken(grad_memory.view(rows.shape), grad, indices, offsets)
    return grad_query, grad_memory
