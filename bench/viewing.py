"""An index to search by its view, and what that costs a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.apart import apart
from bench.peak import resident
from clara import CompressedDocuments
from clara.index import MemoryIndex
from clara_kernels import cosine_topk

K = 10
_FINGERPRINT = "0" * 64
_TOGETHER_BYTES = 1 << 25  # of memory in one `add`


@dataclass(frozen=True)
class Shape:
    """Documents of an index.

    Attributes:
        name: how they are ranked, for readers.
        memory_tokens, hidden_size: of a document.
    """

    name: str
    documents: int
    memory_tokens: int
    hidden_size: int
    ranking: str

    @property
    def width(self) -> int:
        """Of the vectors that documents are ranked by."""
        return self.hidden_size * (1 if self.ranking == "mean" else self.memory_tokens)

    def queries(self, count: int) -> torch.Tensor:
        rows = self.width // self.hidden_size
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, rows, self.hidden_size, generator=generator)


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of a process that opens an index and asks it, one query at a time.

    Attributes:
        growth: resident bytes after all queries, beyond those before opening.
    """

    opened: float
    first: float
    queries: list[float]
    growth: int
    best: list[list[tuple[int, float]]]


def write_index(path: Path, shape: Shape) -> MemoryIndex:
    """An index of random memory in bfloat16, with a line of text for each document."""
    index = MemoryIndex.create(
        path,
        fingerprint=_FINGERPRINT,
        memory_tokens=shape.memory_tokens,
        hidden_size=shape.hidden_size,
        dtype=torch.bfloat16,
        settings={"ranking": shape.ranking},
    )
    for part in _documents(shape):
        index.add(part)
    return index


def _documents(shape: Shape) -> Iterator[CompressedDocuments]:
    step = max(1, _TOGETHER_BYTES // (shape.memory_tokens * shape.hidden_size * 4))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, shape.documents, step):
        count = min(step, shape.documents - start)
        names = [f"document {start + row}" for row in range(count)]
        memory = torch.empty(count, shape.memory_tokens, shape.hidden_size)
        yield CompressedDocuments(
            memory=memory.normal_(generator=generator),
            ids=names,
            document_ids=names,
            token_counts=[96] * count,
            texts=names,
            titles=[None] * count,
            fingerprint=_FINGERPRINT,
        )


def forget(path: Path) -> None:
    """Have the files of an index read from the disk again, as after a restart."""
    os.sync()
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def costs(path: Path, shape: Shape, queries: int, threads: int, *, views: bool = True) -> Costs:
    """What opening and searching costs a process that begins with it."""
    found: Costs = apart(_measure, str(path), shape.queries(queries), threads, views)
    return found


def _measure(path: str, queries: torch.Tensor, threads: int, views: bool) -> Costs:
    torch.set_num_threads(threads)
    cosine_topk(torch.ones(1, 1), torch.ones(1, 1), 1)  # what torch imports then, a model needs too
    before = resident()
    begin = time.perf_counter()
    index = MemoryIndex.open(path, views=views)
    opened = time.perf_counter()
    found = [index.search(queries[:1], K)]
    first = time.perf_counter()
    taken = []
    for query in queries[1:]:
        start = time.perf_counter()
        found.append(index.search(query[None], K))
        taken.append(time.perf_counter() - start)
    best = [[(hit.row, hit.score) for hit in hits] for (hits,) in found]
    return Costs(opened - begin, first - opened, taken, resident() - before, best)
