"""`MemoryIndex`: compressed documents on disk and exact search over them."""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lance
import torch
from torch import Tensor

from clara.documents import CompressedDocuments
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.hits import Hit, read_hits
from clara.index.layout import FORMAT_VERSION, Header, encode
from clara.index.snapshot import Snapshot
from clara_kernels import cosine_topk

_QUERY_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class MemoryIndex:
    """Compressed documents of one model in a folder, a Lance dataset. Rows are never changed.

    Made by `create` or `open`. Each `add` is one commit: a process killed in the middle of it
    leaves the index as it was before. Several processes may read and add; each sees what others
    committed at its next call. Every document carries a checksum that is verified whenever the
    document is read: a damaged one raises MemoryIndexError with its id, from any method.

    Searching reads all memory into RAM once, and again after documents were added.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._header = snapshot.header
        self._catalog: _Catalog | None = None
        self._lock = threading.RLock()  # guards the two above; held while either is loaded

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: str,
        memory_tokens: int,
        hidden_size: int,
        dtype: torch.dtype = torch.float32,
        settings: dict[str, Any] | None = None,
    ) -> MemoryIndex:
        """Make an empty index.

        Args:
            path: a new folder, or an empty one.
            fingerprint: of the model whose memory the index will hold, `Clara.fingerprint`.
            memory_tokens: m, memory tokens per document.
            hidden_size: H.
            dtype: float32, float16 or bfloat16: how memory is stored and searched.
            settings: anything JSON holds, to keep beside the documents.

        Raises:
            ValueError, TypeError: an argument is not as stated.
            MemoryIndexError: `path` exists and is no empty folder, or cannot be written.
        """
        settings = {} if settings is None else settings
        header = Header(fingerprint, memory_tokens, hidden_size, dtype, copy.deepcopy(settings))
        target = _local_path(path)
        if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
            raise MemoryIndexError(f"{target}: exists already; choose a new or an empty folder")
        # Under another name first: a process killed here leaves nothing at `path`.
        unfinished = os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}.tmp")
        try:
            with failures_in(target, "creating the index"):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                lance.write_dataset(
                    header.schema.empty_table(),
                    unfinished,
                    mode="create",
                    data_storage_version="2.1",
                )
                os.rename(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls.open(target)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MemoryIndex:
        """Open an index that `create` made.

        Raises:
            MemoryIndexError: nothing there, not an index, a newer format, or damaged.
        """
        return cls(Snapshot.latest(_local_path(path)))

    def add(self, compressed: CompressedDocuments) -> None:
        """Store documents after those already there, all of them or none.

        Each call is one commit with files of its own; hundreds of documents per call make a
        compact index. Memory is converted to the index's dtype.

        Args:
            compressed: N documents with memory `[N, m, H]`, on any device.

        Raises:
            TypeError: not CompressedDocuments, or memory that is not floating point.
            MemoryIndexError: another model's memory, another shape, an id that is empty, given
                twice or stored already, or a value that cannot be stored.
        """
        self._check_documents(compressed)
        batch = encode(self._header, compressed)
        with self._lock, _only_writer(self.path):
            catalog = self._read_catalog()
            for name in compressed.ids:
                if name in catalog.rows:
                    raise MemoryIndexError(f"document {name!r} is in the index already")
            if not len(compressed):
                return
            before = self._snapshot
            self._snapshot = before.append(batch)
            if self._snapshot.count == before.count + len(compressed):
                catalog.extend(compressed.ids, compressed.document_ids, compressed.token_counts)
            else:
                self._catalog = None

    def get(self, ids: Sequence[str]) -> CompressedDocuments:
        """The documents with these ids, in the order asked.

        Raises:
            TypeError: `ids` is a single string.
            MemoryIndexError: an id is not in the index, or its document is damaged.
        """
        _check_ids(ids)
        with self._lock:
            stored = self._read_catalog().rows
            snapshot = self._snapshot
        for name in ids:
            if name not in stored:
                raise MemoryIndexError(f"{self.path}: no document has the id {name!r}")
        return snapshot.take([stored[name] for name in ids])

    def contains(self, ids: Sequence[str]) -> list[bool]:
        """Whether a document with each of these ids is stored."""
        _check_ids(ids)
        with self._lock:
            stored = self._read_catalog().rows
        return [name in stored for name in ids]

    def ids(self) -> list[str]:
        """The ids of all documents, in the order they were added."""
        with self._lock:
            return list(self._read_catalog().rows)

    def search(self, query_memory: Tensor, k: int) -> list[list[Hit]]:
        """The documents whose flattened memory has the highest cosine to each query.

        Exact, on the CPU, by `clara_kernels.cosine_topk`; equal scores are ordered by row.

        Args:
            query_memory: `[B, m, H]` or `[m, H]`; float32, float16 or bfloat16, on any device.
            k: at least 1; at most 2,048 if the index holds more.

        Returns:
            `min(k, len(index))` hits for each of the B queries (one for `[m, H]`), best first.

        Raises:
            TypeError: `query_memory` or `k` has another type.
            ValueError: another shape, a value that is not finite, or k below 1.
            MemoryIndexError: a document is damaged: any for the first search, a hit later on.
        """
        queries = self._check_queries(query_memory)
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"k must be an int, got {type(k).__name__}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        with self._lock:
            snapshot = self._current()
            corpus = snapshot.corpus
        if not len(queries) or not len(corpus):
            return [[] for _ in queries]
        scores, rows = cosine_topk(queries, corpus, k)
        return read_hits(snapshot, scores, rows)

    def __len__(self) -> int:
        return self._current().count

    def __iter__(self) -> Iterator[CompressedDocuments]:
        """All documents in the order they were added, in batches of a few megabytes."""
        return self._current().batches()

    def __repr__(self) -> str:
        return (
            f"MemoryIndex({self.path!r}, memory_tokens={self.memory_tokens}, "
            f"hidden_size={self.hidden_size}, dtype={self._header.dtype_name})"
        )

    def info(self) -> dict[str, Any]:
        """What `clara info` shows, as JSON holds it.

        Keys: "path", "format_version", "count" (rows), "documents" (distinct document ids),
        "memory_tokens", "hidden_size", "dtype", "fingerprint", "bytes" (on disk), "tokens"
        (document tokens read), "effective_compression" (tokens read per memory token, 0 when
        empty) and "settings".
        """
        with self._lock:
            catalog = self._read_catalog()
            count, documents = len(catalog.rows), len(catalog.document_ids)
            tokens = catalog.tokens
        return {
            "path": self.path,
            "format_version": FORMAT_VERSION,
            "count": count,
            "documents": documents,
            "memory_tokens": self.memory_tokens,
            "hidden_size": self.hidden_size,
            "dtype": self._header.dtype_name,
            "fingerprint": self.fingerprint,
            "bytes": _bytes_on_disk(self.path),
            "tokens": tokens,
            "effective_compression": tokens / (count * self.memory_tokens) if count else 0.0,
            "settings": self.settings,
        }

    @property
    def path(self) -> str:
        """The folder, absolute."""
        return self._snapshot.path

    @property
    def fingerprint(self) -> str:
        """Of the model that wrote the memory."""
        return self._header.fingerprint

    @property
    def memory_tokens(self) -> int:
        """m, memory tokens per document."""
        return self._header.memory_tokens

    @property
    def hidden_size(self) -> int:
        """H."""
        return self._header.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """How memory is stored."""
        return self._header.dtype

    @property
    def settings(self) -> dict[str, Any]:
        """A copy of what `create` was given."""
        return copy.deepcopy(self._header.settings)

    def _current(self) -> Snapshot:
        """The last commit, whichever process made it."""
        with self._lock:
            if not self._snapshot.is_latest:
                snapshot = Snapshot.latest(self.path)
                if snapshot.header != self._header:
                    raise MemoryIndexError(f"{self.path}: was replaced by another index")
                self._snapshot, self._catalog = snapshot, None
            return self._snapshot

    def _read_catalog(self) -> _Catalog:
        """Of the last commit. The caller holds the lock."""
        snapshot = self._current()
        if self._catalog is None:
            catalog = _Catalog()
            for heads in snapshot.heads():
                catalog.extend(heads.ids, heads.document_ids, heads.token_counts)
            if len(catalog.rows) != snapshot.count:
                raise MemoryIndexError(f"{self.path}: is damaged: an id is stored twice")
            self._catalog = catalog
        return self._catalog

    def _check_documents(self, compressed: CompressedDocuments) -> None:
        if not isinstance(compressed, CompressedDocuments):
            raise TypeError(
                f"compressed must be CompressedDocuments, got {type(compressed).__name__}"
            )
        if compressed.fingerprint != self.fingerprint:
            raise MemoryIndexError(
                f"compressed is of another model ({compressed.fingerprint[:12]}) than the index "
                f"({self.fingerprint[:12]}); compress the documents with the index's model"
            )
        memory = compressed.memory
        if tuple(memory.shape[1:]) != (self.memory_tokens, self.hidden_size):
            raise MemoryIndexError(
                f"compressed.memory must be [N, {self.memory_tokens}, {self.hidden_size}], "
                f"got {list(memory.shape)}"
            )
        if not memory.is_floating_point():
            raise TypeError(f"compressed.memory must be floating point, got {memory.dtype}")
        seen = set()
        for name in compressed.ids:
            if not name:
                raise MemoryIndexError("compressed.ids holds an empty id")
            if name in seen:
                raise MemoryIndexError(f"compressed.ids holds {name!r} twice")
            seen.add(name)

    def _check_queries(self, query_memory: Tensor) -> Tensor:
        """Queries `[B, m * H]` on the CPU."""
        if not isinstance(query_memory, Tensor):
            raise TypeError(
                f"query_memory must be a torch.Tensor, got {type(query_memory).__name__}"
            )
        if query_memory.dtype not in _QUERY_DTYPES:
            raise TypeError(
                f"query_memory must be float32, float16 or bfloat16, got {query_memory.dtype}"
            )
        shape = (self.memory_tokens, self.hidden_size)
        if query_memory.ndim not in (2, 3) or tuple(query_memory.shape[-2:]) != shape:
            raise ValueError(
                f"query_memory must be [B, {shape[0]}, {shape[1]}] or [{shape[0]}, {shape[1]}], "
                f"got {list(query_memory.shape)}"
            )
        queries = query_memory.detach().cpu().reshape(-1, self._header.width)
        if not queries.isfinite().all():
            raise ValueError("query_memory holds values that are not finite")
        return queries


class _Catalog:
    """Ids and totals of all rows, in memory so that looking up an id reads nothing."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.document_ids: set[str] = set()
        self.tokens = 0

    def extend(self, ids: list[str], document_ids: list[str], token_counts: list[int]) -> None:
        self.rows.update(zip(ids, range(len(self.rows), len(self.rows) + len(ids))))
        self.document_ids.update(document_ids)
        self.tokens += sum(token_counts)


@contextmanager
def _only_writer(path: str) -> Iterator[None]:
    """Wait until no other process adds. The lock goes with the process, however it ends."""
    with failures_in(path, "locking the index"):
        folder = os.open(path, os.O_RDONLY)
    try:
        with failures_in(path, "locking the index"):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _local_path(path: str | os.PathLike[str]) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _bytes_on_disk(path: str) -> int:
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _check_ids(ids: Sequence[str]) -> None:
    if isinstance(ids, str):
        raise TypeError("ids must be a list of ids, got a single string")
