"""On the CPU: PyTorch's flash attention on many documents at once, or in bfloat16 our own.

A document longer than the window is computed in pieces: some of its query rows, and the keys that
at least one of them sees. So time and the size of masks grow with length · window, not with the
square of the length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import compiled
from .reference import query_offsets

# Query rows of a piece: enough to fill a product, and few enough for a small mask.
_LEAST_PIECE = 64
_MOST_PIECE = 512
# Elements; larger masks, of windows over long documents, are made anew.
_LARGEST_KEPT_MASK = 1 << 16

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
        rows = batch.transpose(1, 2).flatten(0, 1).to(x.dtype)
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


@dataclass(frozen=True)
class _Group:
    """Query rows and key rows of pieces that are computed as one batch.

    Attributes:
        window: see `memory_attention`; 0 without one.
    """

    q_rows: _Rows
    rows: _Rows
    window: int
    _masks: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        """Whether the pieces are whole documents, which need no mask."""
        cut = 0 < self.window < self.rows.length
        return self.q_rows.length == self.rows.length and not cut

    def mask(self, dtype: torch.dtype, heads: int) -> Tensor:
        """`[count or 1, 1, heads · queries, keys]`, for the heads that share keys and values."""
        kept = self._masks.get((dtype, heads))
        if kept is None:
            with _usable_everywhere():
                kept = torch.where(self._seen(), 0.0, -torch.inf).to(dtype)
                kept = kept.repeat(1, heads, 1)[:, None]
            if kept.numel() <= _LARGEST_KEPT_MASK:
                self._masks[dtype, heads] = kept
        return kept

    def _seen(self) -> Tensor:
        """Boolean `[count or 1, queries, keys]`."""
        q_rows, rows, window = self.q_rows, self.rows, self.window
        position = torch.arange(q_rows.length)[:, None] + rows.length - q_rows.length
        keys = torch.arange(rows.length)
        seen = (keys <= position)[None]
        if 0 < window < rows.length:
            seen = seen & (keys > position - window)
        if rows.present is not None:
            seen = seen & rows.present.view(rows.count, 1, rows.length)
        return seen


def _groups(cu_seqlens: Tensor, q_offsets: Tensor, window: int) -> list[_Group]:
    """Pieces of equal length; with fewer queries than keys, of equal queries and about as many
    keys, as few queries make small batches.
    """
    return _groups_of(tuple(cu_seqlens.tolist()), tuple(q_offsets.tolist()), window)


@lru_cache(maxsize=8)  # all layers of a model ask for the same groups, forward and backward
def _groups_of(bounds: tuple[int, ...], q_bounds: tuple[int, ...], window: int) -> list[_Group]:
    members = defaultdict(list)
    for piece in _pieces(bounds, q_bounds, window):
        q_length, length = piece.q_length, piece.length
        about = length if q_length == length else int(2 * math.log2(length))
        members[q_length, about, q_length == length].append(piece)
    groups = []
    with _usable_everywhere():
        for (q_length, _, _), found in members.items():
            q_rows = _rows([piece.q_start for piece in found], [q_length] * len(found))
            rows = _rows([piece.start for piece in found], [piece.length for piece in found])
            groups.append(_Group(q_rows, rows, window))
    return groups


@contextmanager
def _usable_everywhere() -> Iterator[None]:
    """Tensors made here are kept for later calls, which may be made outside of inference mode."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


class _Call(NamedTuple):
    """Queries, keys and values as flash attention takes them, and its mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    mask: Tensor | None


def _prepare(q: Tensor, k: Tensor, v: Tensor, group: _Group, dtype: torch.dtype) -> _Call:
    """In `dtype`. With a mask the heads that share keys become rows: the keys are read once."""
    rows = group.q_rows.of(q), group.rows.of(k), group.rows.of(v)
    query, key, value = (x.to(dtype) for x in rows)
    if group.causal:
        return _Call(query, key, value, True, None)
    heads = q.shape[1] // k.shape[1]
    return _Call(_fold(query, heads), key, value, False, group.mask(dtype, heads))


@lru_cache
def _forward_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the forward pass computes in: bfloat16 takes PyTorch longer than float32 without AMX."""
    has_tiles: bool = torch.cpu._is_amx_tile_supported()
    return torch.float32 if dtype == torch.bfloat16 and not has_tiles else dtype


def _maker(memory_only: bool, window: int) -> Callable[..., Tensor]:
    """Makes tensors whose rows are written: each once where whole documents are computed."""
    return torch.zeros if memory_only or window else torch.empty


def _fold(x: Tensor, heads: int) -> Tensor:
    """`[count, heads · kv_heads, rows, …]` to `[count, kv_heads, heads · rows, …]`."""
    return x.unflatten(1, (-1, heads)).flatten(2, 3)


def _unfold(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).flatten(1, 2)


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
    if compiled.attends_here(q, k):
        return compiled.forward(q, k, v, cu_seqlens, n_memory, memory_only, scale, window)
    q_offsets = query_offsets(cu_seqlens, n_memory, memory_only)
    make = _maker(memory_only, window)
    out = make(q.shape, dtype=q.dtype)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = make(q.shape[:2], dtype=dtype)
    heads = q.shape[1] // k.shape[1]
    for group in _groups(cu_seqlens, q_offsets, window):
        call = _prepare(q, k, v, group, _forward_dtype(q.dtype))
        result, sums = _forward(*call[:3], 0.0, call.causal, attn_mask=call.mask, scale=scale)
        if not call.causal:
            result, sums = _unfold(result, heads), _unfold(sums, heads)
        group.q_rows.put(out, result)
        group.q_rows.put(lse, sums)
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

    By PyTorch they are computed in float32 at least: its backward pass is three to five times as
    slow in lower precision.
    """
    if compiled.attends_here(q, k):
        return compiled.backward(grad, q, k, v, cu_seqlens, n_memory, memory_only, scale, window)
    dtype = lse.dtype
    make = _maker(memory_only, window)
    # With a window, gradients of keys in several pieces are summed before they are rounded.
    gradients = [make(x.shape, dtype=dtype if window else x.dtype) for x in (q, k, v)]
    heads = q.shape[1] // k.shape[1]
    q_offsets = query_offsets(cu_seqlens, n_memory, memory_only)
    for group in _groups(cu_seqlens, q_offsets, window):
        call = _prepare(q, k, v, group, dtype)
        own = [group.q_rows.of(x).to(dtype) for x in (grad, out, lse)]
        if not call.causal:
            own = [_fold(x, heads) for x in own]
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
            dq = _unfold(dq, heads)
        group.q_rows.put(gradients[0], dq)
        put = group.rows.add if window else group.rows.put
        put(gradients[1], dk)
        put(gradients[2], dv)
    dq, dk, dv = (x.to(q.dtype) for x in gradients)
    return dq, dk, dv
