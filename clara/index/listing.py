"""List what an open index holds, by document and without reading memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from clara.data.marks import Mark, Scalar
from clara.index.changing import unknown
from clara.index.contents import Contents
from clara.index.details import marks_of
from clara.index.errors import MemoryIndexError
from clara.index.handle import Handle, as_ids
from clara.index.layout import RowEntry
from clara.memory.documents import CompressedDocuments

_AT_ONCE = 1024  # documents whose rows are read together


class Entry(NamedTuple):
    """A document of an index.

    Attributes:
        rows: ids of its rows: its own, or those of its chunks.
        tokens: document tokens read, of all rows.
        vectors: memory tokens written, of all rows.
        source, digest: as they were given in `Details`; None where they were not. Where the rows
            are not all of one digest, as two processes that stored the document at the same time
            and were killed may leave them, that is None, too.
        metadata: by column, null ones too; empty in an index without columns for metadata.
        places: the page or heading that the text of each row begins in.
        marks: the pages and headings in the text of the document, by offset; in an index that does
            not know all of them, see `Header.marks`, those that its rows begin in.
    """

    document_id: str
    title: str | None
    rows: list[str]
    tokens: int
    vectors: int
    source: str | None
    digest: str | None
    metadata: Mapping[str, Scalar]
    places: list[str | None]
    marks: tuple[Mark, ...] = ()


class Listing(Handle):
    """The methods of `MemoryIndex` that list documents."""

    def documents(self, prefix: str | None = None) -> Iterator[Entry]:
        """All documents in the order that they were added, without reading texts and memory.

        Documents that are added or deleted after the first was asked for change nothing.

        Args:
            prefix: only documents whose ids begin with it.

        Raises:
            MemoryIndexError: a document is damaged.
        """
        contents = self._current()
        rows = contents.documents()
        yield from _entries(
            contents, ((name, rows[name]) for name in rows if name.startswith(prefix or ""))
        )

    def entries(self, document_ids: Sequence[str]) -> list[Entry]:
        """Some documents in the given order, as `documents` lists them; one may come twice.

        Nothing is read of other documents.

        Raises:
            TypeError: `document_ids` is a single string.
            MemoryIndexError: some are not in the index; names the first ten. Or a document is
                damaged.
        """
        names = as_ids(document_ids, "document_ids")

        def read(contents: Contents) -> list[Entry]:
            rows = {name: contents.rows_of(name) for name in names}
            known = {name for name, found in rows.items() if found}
            if len(known) < len(rows):
                raise MemoryIndexError(unknown(contents.snapshot.path, list(rows), known))
            return list(_entries(contents, ((name, rows[name]) for name in names)))

        return self._read(read)

    def get_documents(self, document_ids: Sequence[str]) -> CompressedDocuments:
        """All rows of these documents, in the given order of documents.

        Raises:
            TypeError: `document_ids` is a single string.
            MemoryIndexError: a document is not in the index, or damaged.
        """
        names = as_ids(document_ids, "document_ids")
        return self._read(lambda contents: contents.take(contents.rows_of_all(names)))

    def get_means(self, document_ids: Sequence[str]) -> Tensor | None:
        """What the rows of these documents are ranked by where that is stored beside their memory.

        Returns:
            Means `[rows, H]` in the order of `get_documents`, of the memory before it was
            quantized; None in an index that ranks otherwise, or of formats 1 and 2.

        Raises:
            TypeError: `document_ids` is a single string.
            MemoryIndexError: a document is not in the index, or damaged.
        """
        names = as_ids(document_ids, "document_ids")

        def read(contents: Contents) -> Tensor | None:
            if contents.snapshot.header.mean_bytes is None:
                return None
            return contents.take_vectors(contents.rows_of_all(names))

        return self._read(read)

    def digests(self) -> dict[str, tuple[str | None, str | None]]:
        """Source and digest of each document, in order, as they were given in `Details`.

        Raises:
            MemoryIndexError: a document is damaged.
        """
        return {entry.document_id: (entry.source, entry.digest) for entry in self.documents()}


def _entries(contents: Contents, documents: Iterable[tuple[str, Sequence[int]]]) -> Iterator[Entry]:
    """Documents, of each of which the rows are given."""
    left = iter(documents)
    while group := list(islice(left, _AT_ONCE)):
        found = iter(contents.take_entries([row for _, rows in group for row in rows]))
        for name, rows in group:
            yield _entry(name, list(islice(found, len(rows))))


def _entry(document_id: str, rows: list[RowEntry]) -> Entry:
    first = rows[0].details
    digests = {None if row.details is None else row.details.digest for row in rows}
    return Entry(
        document_id,
        rows[0].title,
        [row.id for row in rows],
        sum(row.tokens for row in rows),
        sum(row.vectors for row in rows),
        None if first is None else first.source,
        digests.pop() if len(digests) == 1 else None,
        {} if first is None else first.metadata,
        [None if row.details is None else row.details.place for row in rows],
        marks_of([row.details for row in rows if row.details is not None]),
    )
