"""On the CPU: PyTorch's flash attention on many documents at once."""

from __future__ import annotations

import math
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
    """Rows of `count` documents, each padded on the left to `length` rows.

    Attributes:
        index: `[count · length]`, or a slice where the documents are neighbours of equal length.
        present: which of them are no padding; None if all are.
    """

    index: slice | Tensor
    count: int
    length: int
    present: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """`[T, heads, …]` to `[count, heads, length, …]`, with any row for padding."""
        return x[self.index].unflatten(0, (self.count, self.length)).transpose(1, 2)

    def put(self, x: Tensor, batch: Tensor) -> None:
        """The inverse of `of`."""
        rows = batch.transpose(1, 2).flatten(0, 1)
        if isinstance(self.index, slice) or self.present is None:
            x[self.index] = rows
        else:
            x[self.index[self.present]] = rows[self.present]


def _rows(starts: list[int], lengths: list[int]) -> _Rows:
    count, longest = len(starts), max(lengths)
    neighbours = range(starts[0], starts[0] + count * longest, longest)
    if min(lengths) == longest and starts == list(neighbours):
        return _Rows(slice(neighbours.start, neighbours.stop), count, longest)
    ends = torch.tensor(starts) + torch.tensor(lengths)
    index = ends[:, None] + torch.arange(-longest, 0)  # [count, longest]
    if min(lengths) == longest:
        return _Rows(index.flatten(), count, longest)
    first = torch.tensor(starts)[:, None]
    return _Rows(index.clamp(min=first).flatten(), count, longest, (index >= first).flatten())


def _groups(cu_seqlens: Tensor, q_offsets: Tensor) -> Iterator[tuple[_Rows, _Rows]]:
    """Query rows and key rows of documents that are computed as one batch.

    Those of equal length; with queries for the memory rows alone, of about equal length, as few
    queries make small batches. Documents without rows are left out.
    """
    members = defaultdict(list)
    documents = zip(pairwise(q_offsets.tolist()), pairwise(cu_seqlens.tolist()), strict=True)
    for (q_start, q_end), (start, end) in documents:
        q_length, length = q_end - q_start, end - start
        if 0 < q_length <= length:
            about = length if q_length == length else int(2 * math.log2(length))
            members[q_length, about, q_length == length].append((q_start, start, length))
    for (q_length, _, _), found in members.items():
        q_starts, starts, lengths = map(list, zip(*found, strict=True))
        yield _rows(q_starts, [q_length] * len(found)), _rows(starts, lengths)


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
    seen = (torch.arange(rows.length) <= position)[None]  # [1, queries, keys]
    if rows.present is not None:
        seen = seen & rows.present.view(rows.count, 1, rows.length)
    mask = torch.where(seen, 0.0, -torch.inf).to(q.dtype)
    return _Call(_fold(query, group), key, value, False, mask.repeat(1, group, 1)[:, None])


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
    out = torch.zeros(q.shape, dtype=q.dtype)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.zeros(q.shape[:2], dtype=dtype)
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
    gradients = [torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v)]
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
