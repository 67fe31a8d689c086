"""One version of an index: reading its rows, every one of them checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import lance
import pyarrow as pa
import torch

from clara.documents import CompressedDocuments
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.layout import (
    ALL_COLUMNS,
    HEAD_COLUMNS,
    Header,
    Heads,
    damaged,
    decode,
    decode_heads,
)
from clara_kernels import Corpus

_BATCH_BYTES = 1 << 23  # of memory, in a batch of rows that is read at a time
_BATCH_ROWS = 1024
_HEAD_ROWS = 1 << 14
_PROBED_ROWS = 1 << 14  # rows that are tried one by one after a failure; Lance reads ahead


class Snapshot:
    """The rows of one commit, which later commits leave as they are.

    Every method raises MemoryIndexError where what it reads is not what was written.
    """

    def __init__(self, dataset: Any, header: Header, path: str) -> None:
        self.header = header
        self.path = path
        self._dataset = dataset
        with failures_in(path, "counting the documents"):
            self.count: int = dataset.count_rows()

    @classmethod
    def latest(cls, path: str) -> Snapshot:
        """The last commit in the folder `path`.

        Raises:
            MemoryIndexError: there is no index, or one this release cannot read.
        """
        if not os.path.isdir(path):
            what = "is a file, not the folder of an index" if os.path.exists(path) else "not found"
            raise MemoryIndexError(f"{path}: {what}")
        if not os.path.isdir(os.path.join(path, "_versions")):
            raise MemoryIndexError(f"{path}: not an index: the folder holds no Lance dataset")
        with failures_in(path, "opening the index"):
            dataset = lance.dataset(path)
            return cls(dataset, Header.from_schema(dataset.schema, path), path)

    @property
    def is_latest(self) -> bool:
        """False once there is a later commit on disk."""
        with failures_in(self.path, "looking for a newer version"):
            return bool(self._dataset.latest_version == self._dataset.version)

    def append(self, batch: pa.RecordBatch) -> Snapshot:
        """Commit rows; the version with them."""
        with failures_in(self.path, "writing"):
            reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
            dataset = lance.write_dataset(reader, self.path, mode="append")
            return Snapshot(dataset, self.header, self.path)

    def heads(self) -> Iterator[Heads]:
        """Ids, titles and token counts in batches, without reading texts and memory."""
        for rows, batch in self._scan(HEAD_COLUMNS, _HEAD_ROWS):
            with failures_in(self.path, "reading"):
                heads = decode_heads(batch, rows, self.path)
            yield heads

    def batches(self) -> Iterator[CompressedDocuments]:
        """All documents in order, some megabytes at a time."""
        for rows, batch in self._scan(ALL_COLUMNS, self._batch_rows):
            with failures_in(self.path, "reading"):
                documents = decode(self.header, batch, rows, self.path)
            yield documents

    @cached_property
    def corpus(self) -> Corpus:
        """`[N, m * H]` in the stored dtype; read at the first use and kept."""
        matrix = torch.empty(self.count, self.header.width, dtype=self.header.dtype)
        for rows, batch in self._scan(ALL_COLUMNS, self._batch_rows):
            with failures_in(self.path, "reading"):
                decode(self.header, batch, rows, self.path, out=matrix[rows.start : rows.stop])
        return Corpus(matrix)

    def take(self, rows: Sequence[int]) -> CompressedDocuments:
        """The documents of the given rows, in that order; a row may come twice."""
        distinct = sorted(set(rows))
        with self._naming_unreadable(distinct), failures_in(self.path, "reading"):
            batch = self._take(distinct, ALL_COLUMNS)
        with failures_in(self.path, "reading"):
            documents = decode(self.header, batch, distinct, self.path)
        position = {row: place for place, row in enumerate(distinct)}
        return documents[[position[row] for row in rows]]

    @property
    def _batch_rows(self) -> int:
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES // self.header.row_bytes))

    def _scan(self, columns: list[str], batch_rows: int) -> Iterator[tuple[range, pa.RecordBatch]]:
        """All rows in order, with where each batch is from."""
        start = 0
        with failures_in(self.path, "reading"):
            scanner = self._dataset.scanner(
                columns=columns, batch_size=batch_rows, scan_in_order=True
            )
            batches = iter(scanner.to_batches())
        while start <= self.count:
            ahead = range(start, min(self.count, start + _PROBED_ROWS))
            with self._naming_unreadable(ahead), failures_in(self.path, "reading"):
                batch = next(batches, None)
            if batch is None:
                break
            rows = range(start, start + batch.num_rows)
            start = rows.stop
            if start <= self.count:
                yield rows, batch
        if start != self.count:
            raise MemoryIndexError(f"{self.path}: damaged, it should hold {self.count} documents")

    def _take(self, rows: Sequence[int], columns: list[str]) -> pa.RecordBatch:
        """Rows in ascending order, as one batch."""
        table = self._dataset.take(list(rows), columns=columns)
        if table.num_rows != len(rows):
            raise MemoryIndexError(
                f"{self.path}: damaged, {table.num_rows} of {len(rows)} documents were read"
            )
        arrays = [
            pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
            for column in table.columns
        ]
        return pa.record_batch(arrays, schema=table.schema)

    @contextmanager
    def _naming_unreadable(self, rows: Sequence[int]) -> Iterator[None]:
        """Where Lance itself cannot decode what it reads, say which of `rows` it is."""
        try:
            yield
        except MemoryIndexError as error:
            row = next((row for row in rows if not self._readable(row, ALL_COLUMNS)), None)
            if row is None or not self._readable(row, HEAD_COLUMNS):
                raise
            name = self._take([row], ["id"]).column("id")[0].as_py()
            raise damaged(self.path, name.encode(), row) from error

    def _readable(self, row: int, columns: list[str]) -> bool:
        try:
            with failures_in(self.path, "reading"):
                self._take([row], columns)
        except MemoryIndexError:
            return False
        return True
