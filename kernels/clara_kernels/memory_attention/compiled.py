"""In bfloat16 on processors that multiply it: each document by itself, with sums in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..build import native
from ..threads import processors_are_free
from .reference import query_offsets

_WIDTH_UNIT = 16  # of heads that the compiled module takes


def attends_here(q: Tensor, k: Tensor) -> bool:
    """Whether the compiled module computes attention: where it multiplies bfloat16."""
    return (
        q.dtype == torch.bfloat16
        and q.shape[2] > 0
        and q.shape[2] % _WIDTH_UNIT == 0
        and k.shape[0] > 0
        and native is not None
        and native.attends_bfloat16()
        and processors_are_free()
    )


def forward(q: Tensor, k: Tensor, v: Tensor, *documents: Any) -> tuple[Tensor, Tensor]:
    """As `reference.forward`.

    Args:
        documents: bounds and settings, see `_sizes`.
    """
    q, k, v = (x.contiguous() for x in (q, k, v))
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    native.attention(
        _sizes(q, k, *documents),
        *(x.data_ptr() for x in (q, k, v, out, lse)),
        torch.get_num_threads(),
    )
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *documents: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    The softmax is computed anew from q and k, so neither a result nor a log of its sums is needed.

    Args:
        documents: bounds and settings, see `_sizes`.
    """
    memory_only = documents[2]
    grad, q, k, v = (x.contiguous() for x in (grad.to(q.dtype), q, k, v))
    # Documents without queries are skipped, and so are those with fewer rows than queries.
    make = torch.zeros_like if memory_only else torch.empty_like
    dq, dk, dv = (make(x) for x in (q, k, v))
    native.attention_gradient(
        _sizes(q, k, *documents),
        *(x.data_ptr() for x in (q, k, v, grad, dq, dk, dv)),
        torch.get_num_threads(),
    )
    return dq, dk, dv


def _sizes(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> Any:
    _, heads, width = q.shape
    bounds = cu_seqlens.tolist(), query_offsets(cu_seqlens, n_memory, memory_only).tolist()
    return native.AttentionSizes(*bounds, heads, k.shape[1], width, scale, window)
