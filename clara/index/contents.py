"""The documents of one version of an index, each once, in the order they were added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clara.index.catalog import Catalog, Positions
from clara.index.details import RowDetails
from clara.index.errors import MemoryIndexError
from clara.index.layout import RowEntry, StoredText
from clara.index.snapshot import Snapshot
from clara.memory.documents import CompressedDocuments
from clara_kernels import Corpus

_TEXTS = 1024  # that are read at a time


class RowReader:
    """Reads rows of a snapshot by their number in the order of the documents.

    Args:
        positions: int64, where the dataset has each row; None where that is its number.
    """

    def __init__(self, snapshot: Snapshot, positions: Positions | None) -> None:
        self.snapshot = snapshot
        self.positions = positions

    def take(self, rows: Sequence[int]) -> CompressedDocuments:
        """The documents of the given rows, in that order; a row may come twice."""
        return self.snapshot.take(self._at(rows))

    def take_with_details(
        self, rows: Sequence[int]
    ) -> tuple[CompressedDocuments, list[RowDetails | None]]:
        """The documents of the given rows, and what is known beside them, read together."""
        return self.snapshot.take_with_details(self._at(rows))

    def take_vectors(self, rows: Sequence[int]) -> Tensor:
        """What the given rows are ranked by."""
        return self.snapshot.take_vectors(self._at(rows))

    def take_texts(self, rows: Sequence[int]) -> list[StoredText]:
        """Texts of the given rows, without reading memory."""
        return self.snapshot.take_texts(self._at(rows))

    def take_entries(self, rows: Sequence[int]) -> list[RowEntry]:
        """The given rows without texts and memory."""
        return self.snapshot.take_entries(self._at(rows))

    def _at(self, rows: Sequence[int]) -> list[int]:
        if self.positions is None:
            return list(rows)
        return [int(self.positions[row]) for row in rows]


class Contents(RowReader):
    """What can be read of a snapshot, by row.

    Args:
        catalog: of the snapshot. It may be extended by later commits: their rows come behind
            `count` and are not read here.
    """

    def __init__(self, snapshot: Snapshot, catalog: Catalog) -> None:
        super().__init__(snapshot, catalog.positions)
        self.count = len(catalog.rows)
        self._rows = catalog.rows
        self._documents = catalog.documents
        self._details_are_checked = False
        self.has_duplicates = bool(catalog.duplicates)
        each = catalog.memory_tokens / self.count if self.count else 1
        self.batch_rows = snapshot.batch_rows(each, catalog.longest)

    def row(self, name: str) -> int | None:
        """Where the document with this id is; None if the snapshot has none."""
        row = self._rows.get(name)
        return None if row is None or row >= self.count else row

    def known_row(self, name: str) -> int:
        """Where the document with this id is.

        Raises:
            MemoryIndexError: it is not there.
        """
        row = self.row(name)
        if row is None:
            raise MemoryIndexError(f"{self.snapshot.path}: no document has the id {name!r}")
        return row

    def rows_of(self, document_id: str) -> list[int]:
        """Where the rows of a document are, in order; empty if the snapshot has none."""
        rows = self._documents.get(document_id, [])
        return [row for row in ([rows] if isinstance(rows, int) else rows) if row < self.count]

    def rows_of_all(self, document_ids: Sequence[str]) -> list[int]:
        """Where all rows of these documents are, in the order that they are given in.

        Raises:
            MemoryIndexError: a document is not there.
        """
        found = []
        for name in document_ids:
            rows = self.rows_of(name)
            if not rows:
                raise MemoryIndexError(f"{self.snapshot.path}: no document has the id {name!r}")
            found += rows
        return found

    def documents(self) -> dict[str, list[int]]:
        """The rows of each document, in the order of their first rows."""
        names = list(self._documents)  # at once: another thread may extend the catalog
        found = ((name, self.rows_of(name)) for name in names)
        return {name: rows for name, rows in found if rows}

    def texts(self) -> Iterator[StoredText]:
        """All texts in order, as `take_texts` reads them."""
        if self.positions is None:
            for batch in self.snapshot.texts():
                yield from batch
            return
        for begin in range(0, self.count, _TEXTS):
            yield from self.snapshot.take_texts(self.positions[begin : begin + _TEXTS].tolist())

    def batches(self) -> Iterator[CompressedDocuments]:
        """All documents in order, some megabytes at a time."""
        if self.positions is None:
            yield from self.snapshot.batches(self.batch_rows)
            return
        step = self.batch_rows
        for begin in range(0, self.count, step):
            yield self.snapshot.take(self.positions[begin : begin + step].tolist())

    def check_details(self) -> None:
        """Read the metadata of all rows, once, so that none is damaged that Lance will compare.

        Raises:
            MemoryIndexError: a row is damaged.
        """
        if not self._details_are_checked:
            for _ in self.snapshot.entries():
                pass
            self._details_are_checked = True

    @property
    def ranked_bytes(self) -> int:
        """Of the vectors that documents are ranked by."""
        header = self.snapshot.header
        return self.count * header.vector_width * header.vector_dtype.itemsize

    @cached_property
    def corpus(self) -> Corpus:
        """The vectors that documents are ranked by, read at the first use and kept.

        `[N, header.vector_width]` in `header.vector_dtype`, with scales if that is int8.
        """
        header = self.snapshot.header
        matrix = torch.empty(self.count, header.vector_width, dtype=header.vector_dtype)
        scales = torch.empty(self.count) if header.vector_dtype == torch.int8 else None
        for rows, values, of_values in self.ranked():
            matrix[rows] = values
            if scales is not None and of_values is not None:
                scales[rows] = of_values
        return Corpus(matrix, scales=scales)

    def ranked(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The vectors that documents are ranked by, some megabytes at a time, as they lie.

        Args:
            start: positions that are passed over.

        Yields:
            Rows, int64 `[R]`; their vectors `[R, header.vector_width]` in `header.vector_dtype`;
            and scales `[R]` if that is int8.
        """
        target = np.arange(self.snapshot.count)
        if self.positions is not None:
            target = np.full(self.snapshot.count, -1)
            target[self.positions] = np.arange(self.count)
        whole = self.snapshot.header.mean_bytes is None
        step = self.batch_rows if whole else self.snapshot.batch_rows(1, 1)
        for rows, values, scales in self.snapshot.vectors(step, start):
            places = torch.from_numpy(target[rows.start : rows.stop])
            chosen = places >= 0  # others are stored twice
            yield places[chosen], values[chosen], None if scales is None else scales[chosen]
