"""On the CPU: PyTorch's flash attention on many documents at once.

A document longer than the window is computed in pieces: some of its query rows, and the keys that
at least one of them sees. So time and the size of masks grow with length · window, not with the
square of the length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import query_offsets

# Query rows of a piece: enough to fill a product, and few enough for a small mask.
_LEAST_PIECE = 64
_MOST_PIECE = 512

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

    def add(self, x: Tensor, batch: Tensor) -> None:
        """As `put`, but added to what is there, and rows may overlap."""
        rows, index = batch.transpose(1, 2).flatten(0, 1).to(x.dtype), self.index
        if isinstance(index, slice):
            x[index] += rows
        elif self.present is None:
            x.index_add_(0, index, rows)
        else:
            x.index_add_(0, index[self.present], rows[self.present])


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


class _Piece(NamedTuple):
    """Query rows of one document, and the keys up to the last query row's own."""

    q_start: int
    q_length: int
    start: int
    length: int


def _pieces(bounds: Sequence[int], q_bounds: Sequence[int], window: int) -> Iterator[_Piece]:
    """Whole documents, or pieces of those that are longer than the window. None without rows."""
    documents = zip(pairwise(q_bounds), pairwise(bounds), strict=True)
    for (q_start, q_end), (start, end) in documents:
        q_length, length = q_end - q_start, end - start
        if not 0 < q_length <= length:
            continue
        if not window or length <= window:
            yield _Piece(q_start, q_length, start, length)
            continue
        size = min(max(window, _LEAST_PIECE), _MOST_PIECE)
        first = 0
        while first < q_length:
            position = length - q_length + first  # of the piece's first row in the document
            # Rows that see all rows before them need no mask, however many they are.
            count = min(max(window, size) if position == 0 else size, q_length - first)
            first_key = max(position - window + 1, 0)
            yield _Piece(q_start + first, count, start + first_key, position + count - first_key)
            first += count


def _groups(cu_seqlens: Tensor, q_offsets: Tensor, window: int) -> list[tuple[_Rows, _Rows]]:
    """Query rows and key rows of pieces that are computed as one batch.

    Those of equal length; with fewer queries than keys, of about equal length, as few queries make
    small batches.
    """
    return _groups_of(tuple(cu_seqlens.tolist()), tuple(q_offsets.tolist()), window)


@lru_cache(maxsize=16)  # all layers of a model ask for the same ones, forward and backward
def _groups_of(
    bounds: tuple[int, ...], q_bounds: tuple[int, ...], window: int
) -> list[tuple[_Rows, _Rows]]:
    members = defaultdict(list)
    for piece in _pieces(bounds, q_bounds, window):
        q_length, length = piece.q_length, piece.length
        about = length if q_length == length else int(2 * math.log2(length))
        members[q_length, about, q_length == length].append(piece)
    groups = []
    for (q_length, _, _), found in members.items():
        q_starts = [piece.q_start for piece in found]
        rows = _rows([piece.start for piece in found], [piece.length for piece in found])
        groups.append((_rows(q_starts, [q_length] * len(found)), rows))
    return groups


class _Call(NamedTuple):
    """Queries, keys and values as flash attention takes them, and its mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    mask: Tensor | None


def _prepare(q: Tensor, k: Tensor, v: Tensor, q_rows: _Rows, rows: _Rows, window: int) -> _Call:
    """With a mask the heads of a group become rows: their keys are read once."""
    group = q.shape[1] // k.shape[1]
    query, key, value = q_rows.of(q), rows.of(k), rows.of(v)
    cut = 0 < window < rows.length
    if q_rows.length == rows.length and not cut:
        return _Call(query, key, value, True, None)
    position = torch.arange(q_rows.length)[:, None] + rows.length - q_rows.length
    keys = torch.arange(rows.length)
    seen = (keys <= position)[None]  # [1, queries, keys]
    if cut:
        seen = seen & (keys > position - window)
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
    window: int,
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    out = torch.zeros(q.shape, dtype=q.dtype)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.zeros(q.shape[:2], dtype=dtype)
    group = q.shape[1] // k.shape[1]
    q_offsets = query_offsets(cu_seqlens, n_memory, memory_only)
    for q_rows, rows in _groups(cu_seqlens, q_offsets, window):
        call = _prepare(q, k, v, q_rows, rows, window)
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
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    Computed in float32 at least: PyTorch's backward pass is three to five times as slow in lower
    precision.
    """
    dtype = q.dtype
    grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
    gradients = [torch.zeros_like(x) for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    q_offsets = query_offsets(cu_seqlens, n_memory, memory_only)
    for q_rows, rows in _groups(cu_seqlens, q_offsets, window):
        call = _prepare(q, k, v, q_rows, rows, window)
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
        put = rows.add if window else rows.put
        put(gradients[1], dk)
        put(gradients[2], dv)
    dq, dk, dv = (x.to(dtype) for x in gradients)
    return dq, dk, dv
