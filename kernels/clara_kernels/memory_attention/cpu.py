"""On the CPU: PyTorch's flash attention on all documents of equal length at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import query_offsets

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Rows:
    """Rows of `count` documents of `length` rows each: a slice where they are neighbours."""

    index: slice | Tensor
    count: int
    length: int

    def of(self, x: Tensor) -> Tensor:
        """`[T, heads, …]` to `[count, heads, length, …]`."""
        return x[self.index].unflatten(0, (self.count, self.length)).transpose(1, 2)

    def put(self, x: Tensor, batch: Tensor) -> None:
        """The inverse of `of`."""
        x[self.index] = batch.transpose(1, 2).flatten(0, 1)


def _rows(starts: list[int], length: int) -> _Rows:
    """Rows of documents that start at `starts`, ascending."""
    count = len(starts)
    if starts == list(range(starts[0], starts[0] + count * length, length)):
        return _Rows(slice(starts[0], starts[0] + count * length), count, length)
    return _Rows((torch.tensor(starts)[:, None] + torch.arange(length)).flatten(), count, length)


def _groups(cu_seqlens: Tensor, q_offsets: Tensor) -> Iterator[tuple[_Rows, _Rows]]:
    """Query rows and key rows of the documents that agree in both numbers of rows."""
    members = defaultdict(list)
    documents = zip(pairwise(q_offsets.tolist()), pairwise(cu_seqlens.tolist()), strict=True)
    for (q_start, q_end), (start, end) in documents:
        members[q_end - q_start, end - start].append((q_start, start))
    for (q_length, length), starts in members.items():
        q_first, first = zip(*starts, strict=True)
        yield _rows(list(q_first), q_length), _rows(list(first), length)


class _Call(NamedTuple):
    """Queries, keys and values as flash attention takes them, and its mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    mask: Tensor | None


def _prepare(q: Tensor, k: Tensor, v: Tensor, q_rows: _Rows, rows: _Rows) -> _Call:
    """With few queries the heads of a group become rows: their keys are read once."""
    group = q.shape[1] // k.shape[1]
    query, key, value = q_rows.of(q), rows.of(k), rows.of(v)
    if q_rows.length == rows.length:
        return _Call(query, key, value, True, None)
    position = torch.arange(q_rows.length)[:, None] + rows.length - q_rows.length
    mask = torch.where(torch.arange(rows.length) <= position, 0.0, -torch.inf).to(q.dtype)
    return _Call(_fold(query, group), key, value, False, mask.repeat(group, 1))


def _fold(x: Tensor, group: int) -> Tensor:
    """`[count, heads, rows, …]` to `[count, kv_heads, group · rows, …]`."""
    return x.unflatten(1, (-1, group)).flatten(2, 3)


def _unfold(x: Tensor, group: int) -> Tensor:
    return x.unflatten(2, (group, -1)).flatten(1, 2)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    out = torch.empty(q.shape, dtype=q.dtype)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.empty(q.shape[:2], dtype=dtype)
    group = q.shape[1] // k.shape[1]
    for q_rows, rows in _groups(cu_seqlens, query_offsets(cu_seqlens, n_memory, memory_only)):
        call = _prepare(q, k, v, q_rows, rows)
        result, sums = _forward(*call[:3], 0.0, call.causal, attn_mask=call.mask, scale=scale)
        if not call.causal:
            result, sums = _unfold(result, group), _unfold(sums, group)
        q_rows.put(out, result)
        q_rows.put(lse, sums)
    return out, lse


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    gradients = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    for q_rows, rows in _groups(cu_seqlens, query_offsets(cu_seqlens, n_memory, memory_only)):
        call = _prepare(q, k, v, q_rows, rows)
        own = [q_rows.of(x) for x in (grad, out, lse)]
        if not call.causal:
            own = [_fold(x, group) for x in own]
        upstream, result, sums = own
        dq, dk, dv = _backward(
            upstream,
            *call[:3],
            result,
            # Written as [count, rows, heads] by the forward pass, and read as such.
            sums.transpose(1, 2).contiguous().transpose(1, 2),
            0.0,
            call.causal,
            attn_mask=call.mask,
            scale=scale,
        )
        if not call.causal:
            dq = _unfold(dq, group)
        q_rows.put(gradients[0], dq)
        rows.put(gradients[1], dk)
        rows.put(gradients[2], dv)
    return gradients[0], gradients[1], gradients[2]
