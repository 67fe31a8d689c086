"""Causal attention of packed documents to themselves, on a padded grid with a mask.

Query head h reads key head h // (heads / kv_heads). In float32, or float64 for float64 input. The
numbers of rows are read on the host. A `window` of 0 is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import RowTable, accumulation_dtype, pad, row_table, unpad


def query_offsets(cu_seqlens: Tensor, n_memory: Tensor, memory_only: bool) -> Tensor:
    """Where each document's query rows begin, int32 `[N + 1]`."""
    if not memory_only:
        return cu_seqlens
    counts = n_memory.expand(cu_seqlens.numel() - 1)
    return torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))


def memory_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> Tensor:
    """See `clara_kernels.memory_attention`. Differentiable by autograd."""
    q_table = row_table(query_offsets(cu_seqlens, n_memory, memory_only))
    k_table = row_table(cu_seqlens)
    weights, _ = _attention_weights(q, k, q_table, k_table, scale, window)
    value = _padded(v, k_table, q.shape[1], weights.dtype)
    return _unpadded(weights @ value, q_table).to(q.dtype)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """The result `[Tq, heads, head_dim]` and the log of its softmax's sums `[Tq, heads]`."""
    q_table = row_table(query_offsets(cu_seqlens, n_memory, memory_only))
    k_table = row_table(cu_seqlens)
    weights, sums = _attention_weights(q, k, q_table, k_table, scale, window)
    value = _padded(v, k_table, q.shape[1], weights.dtype)
    return _unpadded(weights @ value, q_table).to(q.dtype), _unpadded(sums, q_table)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, by differentiating the forward pass anew."""
    with torch.enable_grad():
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        result = memory_attention_reference(
            q, k, v, cu_seqlens, n_memory, memory_only, scale, window
        )
    grad_q, grad_k, grad_v = torch.autograd.grad(result, (q, k, v), grad.to(result.dtype))
    return grad_q, grad_k, grad_v


def _attention_weights(
    q: Tensor, k: Tensor, q_table: RowTable, k_table: RowTable, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Softmax over a document's keys `[N, heads, rows, keys]` and the log of its sums."""
    dtype = accumulation_dtype(q)
    query = _padded(q, q_table, q.shape[1], dtype)
    key = _padded(k, k_table, q.shape[1], dtype)
    # A document's last query row is its last key row.
    shift = k_table.present.sum(1) - q_table.present.sum(1)  # [N]
    rows = torch.arange(query.shape[2], device=q.device)
    keys = torch.arange(key.shape[2], device=q.device)
    last = shift[:, None, None] + rows[:, None]  # [N, rows, 1]
    seen = (keys <= last) & k_table.present[:, None]  # [N, rows, keys]
    if window:
        seen &= keys > last - window
    # Rows of padding see their first key, lest they are NaN.
    seen |= ~seen.any(-1, keepdim=True) & (keys == 0)
    scores = (query @ key.mT * scale).masked_fill(~seen[:, None], -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def _padded(x: Tensor, table: RowTable, heads: int, dtype: torch.dtype) -> Tensor:
    """`[T, kv_heads, head_dim]` to `[N, heads, rows, head_dim]`."""
    grid = pad(x.to(dtype), table).transpose(1, 2)
    return grid.repeat_interleave(heads // grid.shape[1], dim=1)


def _unpadded(grid: Tensor, table: RowTable) -> Tensor:
    """`[N, heads, rows, …]` to `[T, heads, …]`."""
    return unpad(grid.transpose(1, 2), table)
