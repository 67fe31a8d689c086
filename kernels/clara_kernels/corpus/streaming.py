"""Search of a corpus that is larger than the memory of the device that searches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import as_int
from ..cosine_topk.checks import checked_k, require_mask, require_queries
from ..cosine_topk.merge import merge_topk, widened
from ..cosine_topk.op import cosine_topk
from ..cosine_topk.rows import CorpusRows, require_corpus
from ..slices import slices

CHUNK_BYTES = 256 << 20
_Found = tuple[Tensor, Tensor]


def streamed_topk(
    queries: Tensor,
    corpus: CorpusRows,
    k: int,
    *,
    mask: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Search a corpus on the CPU with the device of the queries, chunk by chunk.

    On a GPU, a stream of its own copies the rows through two page-locked buffers into two buffers
    on the device: one chunk is copied while the other is searched. With a mask, only the allowed
    rows are copied. A corpus in page-locked memory (`Corpus.pin_memory`) needs no buffer on the
    CPU. The result is bit for bit that of one `cosine_topk` of the whole corpus on that device.

    Args:
        queries: `[B, D]`, float32, float16 or bfloat16, on the CPU or a GPU.
        corpus: on the CPU, possibly a mapped file.
        k: 1 to 2,048; a larger k is accepted if the corpus has at most 2,048 rows.
        mask: bool `[N]` on the CPU; only rows where it is True are found.
        chunk_bytes: size of a chunk, at least one row. The device holds two chunks, and the CPU
            another two in page-locked memory.

    Returns:
        As `cosine_topk`, on the device of the queries. A GPU may still be computing it.

    Raises:
        TypeError: an argument is not of the stated type.
        ValueError: shapes or devices do not match, or k or chunk_bytes is out of range.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, streamed_topk
        >>> corpus = Corpus(torch.eye(5))
        >>> scores, rows = streamed_topk(torch.eye(5)[[4, 2]], corpus, 1, chunk_bytes=64)
        >>> rows.flatten().tolist()
        [4, 2]
    """
    require_corpus("corpus", corpus)
    if corpus.device.type != "cpu":
        raise ValueError(f"corpus must be on the CPU, got {corpus.device}")
    require_queries(queries)
    k = checked_k(k, len(corpus))
    chunk_bytes = as_int("chunk_bytes", chunk_bytes, 1)
    if mask is not None:
        require_mask(mask, len(corpus), corpus.rows)
    if queries.device.type not in ("cpu", "cuda"):
        raise ValueError(f"queries must be on the CPU or a GPU, got {queries.device}")
    # The search of no rows finds nothing: it is there for the checks of `cosine_topk`.
    best = cosine_topk(queries, corpus[:0].to(queries.device), k)
    row_bytes = corpus.width * corpus.dtype.itemsize + 4
    size = max(1, min(chunk_bytes // row_bytes, len(corpus)))
    if queries.device.type == "cpu":
        found = _in_place(queries, corpus, k, mask, size, best)
    else:
        with torch.cuda.device(queries.device):
            found = _through_buffers(queries, corpus, k, mask, size, best)
    return widened(*found, min(k, len(corpus)))


def _in_place(
    queries: Tensor, corpus: CorpusRows, k: int, mask: Tensor | None, size: int, best: _Found
) -> _Found:
    for part in slices(len(corpus), size):
        allowed = None if mask is None else mask[part]
        known = corpus.inverse_norms[part]
        scores, rows = torch.ops.clara.cosine_topk(
            queries.detach(), corpus.rows[part], known, allowed, k
        )
        best = _merged(best, scores, rows, part.start, k)
    return best


@dataclass
class _Chunk:
    """Consecutive rows from `start`, or those that are `listed`, int64 on the CPU."""

    start: int
    count: int
    listed: Tensor | None


def _chunks(corpus: CorpusRows, mask: Tensor | None, size: int) -> Iterator[_Chunk]:
    if mask is None or bool(mask.all()):
        for part in slices(len(corpus), size):
            yield _Chunk(part.start, part.stop - part.start, None)
    else:
        for listed in mask.nonzero()[:, 0].split(size):
            if len(listed):
                yield _Chunk(0, len(listed), listed)


class _Slot:
    """One of two sets of buffers, page-locked on the host and on the device, and their events."""

    def __init__(self, corpus: CorpusRows, size: int, device: torch.device, staged: bool) -> None:
        shape = (size, corpus.width)
        self.rows = torch.empty(shape, dtype=corpus.dtype, device=device)
        self.norms = torch.empty(size, dtype=torch.float32, device=device)
        self.host_rows = torch.empty(shape, dtype=corpus.dtype, pin_memory=True) if staged else None
        self.host_norms = torch.empty(size, dtype=torch.float32, pin_memory=True)
        self.host_listed = torch.empty(size, dtype=torch.int64, pin_memory=True)
        self.listed = torch.empty(size, dtype=torch.int64, device=device)
        self.used = False
        self.copied = torch.cuda.Event()  # the device's buffers are full, the host's are free
        self.searched = torch.cuda.Event()  # the device's buffers are free

    def fill_host(self, corpus: CorpusRows, chunk: _Chunk) -> Tensor:
        """The rows of the chunk in page-locked memory, once the copy before has left it."""
        if self.used:
            self.copied.synchronize()
        count, part = chunk.count, slice(chunk.start, chunk.start + chunk.count)
        if chunk.listed is None:
            self.host_norms[:count].copy_(corpus.inverse_norms[part])
            if self.host_rows is None:
                return corpus.rows[part]
            return self.host_rows[:count].copy_(corpus.rows[part])
        if self.host_rows is None:
            self.host_rows = torch.empty(self.rows.shape, dtype=corpus.dtype, pin_memory=True)
        self.host_listed[:count].copy_(chunk.listed)
        torch.index_select(corpus.inverse_norms, 0, chunk.listed, out=self.host_norms[:count])
        return torch.index_select(corpus.rows, 0, chunk.listed, out=self.host_rows[:count])

    def start_copy(self, host_rows: Tensor, chunk: _Chunk, stream: Any) -> None:
        """Queue the copies to the device, behind the search of what its buffers held."""
        count = chunk.count
        with torch.cuda.stream(stream):
            if self.used:
                stream.wait_event(self.searched)
            self.rows[:count].copy_(host_rows, non_blocking=True)
            self.norms[:count].copy_(self.host_norms[:count], non_blocking=True)
            if chunk.listed is not None:
                self.listed[:count].copy_(self.host_listed[:count], non_blocking=True)
            self.copied.record(stream)
        self.used = True


def _through_buffers(
    queries: Tensor, corpus: CorpusRows, k: int, mask: Tensor | None, size: int, best: _Found
) -> _Found:
    current, copying = torch.cuda.current_stream(), torch.cuda.Stream()
    pinned = corpus.rows.is_pinned() and corpus.rows.is_contiguous()
    slots = [_Slot(corpus, size, queries.device, not pinned) for _ in range(2)]
    copying.wait_stream(current)  # the buffers may be memory that `current` still uses
    for place, chunk in enumerate(_chunks(corpus, mask, size)):
        slot = slots[place % 2]
        slot.start_copy(slot.fill_host(corpus, chunk), chunk, copying)
        current.wait_event(slot.copied)
        rows, norms = slot.rows[: chunk.count], slot.norms[: chunk.count]
        scores, found = torch.ops.clara.cosine_topk(queries.detach(), rows, norms, None, k)
        if chunk.listed is not None:
            found = slot.listed[found]
        best = _merged(best, scores, found, chunk.start, k)
        slot.searched.record(current)
    return best


def _merged(best: _Found, scores: Tensor, rows: Tensor, start: int, k: int) -> _Found:
    rows = torch.where(rows < 0, -1, rows + start)
    return merge_topk([best[0], scores], [best[1], rows], k)
