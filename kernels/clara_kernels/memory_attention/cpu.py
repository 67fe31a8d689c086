"""On the CPU: PyTorch's flash attention on all documents of equal length at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


def _rows(starts: Tensor, length: int) -> _Rows:
    """Rows of documents that start at `starts`, ascending."""
    count = starts.numel()
    first, last = int(starts[0]), int(starts[-1])
    if last - first == (count - 1) * length and bool((starts.diff() == length).all()):
        return _Rows(slice(first, last + length), count, length)
    return _Rows((starts[:, None] + torch.arange(length)).flatten(), count, length)


def _groups(cu_seqlens: Tensor, q_offsets: Tensor) -> Iterator[tuple[_Rows, _Rows]]:
    """Query rows and key rows of the documents that agree in both numbers of rows."""
    starts, q_starts = cu_seqlens[:-1].long(), q_offsets[:-1].long()
    shapes = torch.stack([cu_seqlens.diff(), q_offsets.diff()], 1)
    kinds, kind = shapes.unique(dim=0, return_inverse=True)
    order = kind.argsort(stable=True)
    bounds = torch.nn.functional.pad(kind.bincount(minlength=len(kinds)).cumsum(0), (1, 0))
    for number, (length, q_length) in enumerate(kinds.tolist()):
        members = order[bounds[number] : bounds[number + 1]]
        yield _rows(q_starts[members], q_length), _rows(starts[members], length)


class _Call(NamedTuple):
    """Queries, keys and values as flash attention takes them, and its mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    mask: Tensor | None


def _prepare(q: Tensor, k: Tensor, v: Tensor, q_rows: _Rows, rows: _Rows) -> _Call:
    """Heads of a group share keys and values.

    With as many queries as keys those are repeated, so that the causal half is left out. With few
    queries a group's heads become rows: the keys are read once.
    """
    group = q.shape[1] // k.shape[1]
    query, key, value = q_rows.of(q), rows.of(k), rows.of(v)
    if q_rows.length == rows.length:
        if group > 1:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
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
        elif group > 1:
            dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
        q_rows.put(gradients[0], dq)
        rows.put(gradients[1], dk)
        rows.put(gradients[2], dv)
    return gradients[0], gradients[1], gradients[2]
