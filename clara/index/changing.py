"""Change an open index: add, replace and delete documents, each in one commit."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import pyarrow as pa
from torch import Tensor

from clara.index import build
from clara.index.acceptance import check_documents
from clara.index.details import Details
from clara.index.doubles import UnseenError
from clara.index.errors import DuplicateIdError, MemoryIndexError
from clara.index.gate import pass_gate
from clara.index.handle import TRIES, Handle, Result, as_ids
from clara.index.header import Header
from clara.index.heads import Heads, decode_heads
from clara.index.layout import encode
from clara.index.locks import WriterLock
from clara.index.snapshot import Snapshot, file_of
from clara.memory.documents import CompressedDocuments

Ready = TypeVar("Ready")

_SHOWN = 10  # ids in a message


class Changed(NamedTuple):
    """How many documents `upsert` stored.

    Attributes:
        added: documents that were not in the index.
        replaced: documents that were.
    """

    added: int
    replaced: int


class _Rows(NamedTuple):
    """Documents as they are stored in an index with this header."""

    header: Header
    ids: list[str]
    document_ids: list[str]
    batch: pa.RecordBatch


class Changing(Handle):
    """The methods of `MemoryIndex` that change documents."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self._writer = build.Writer()
        self._writing = WriterLock()

    def add(
        self, compressed: CompressedDocuments, details: Mapping[str, Details] | None = None
    ) -> None:
        """Add documents at the end of the index, all of them or none.

        Add hundreds of documents per call: every call writes its own files. Memory is converted to
        the index's dtype. If several processes add the same id at the same time, one succeeds and
        the others get DuplicateIdError. If these do not see each other's locks, as on some network
        file systems, readers may see their documents for a moment. If the document is replaced or
        deleted in that moment, the others succeed, too: that came after them.

        Args:
            compressed: N documents with memory `[N, m, H]`, on any device.
            details: metadata and origin of documents, by their ids. The offsets of rows count from
                the document's first row in `compressed`.

        Raises:
            TypeError: an argument has another type, or the memory is not floating point.
            DuplicateIdError: the index already holds some of the ids, or some of the documents
                with other rows. It is a MemoryIndexError.
            MemoryIndexError: the memory is of another model or shape, an id is empty or given
                twice, a value cannot be stored or is not of its column's type, the index has no
                such column, or it has format 1 and its file system has no locks.
        """
        self._tried(lambda: self._encoded(compressed, details), self._added)

    def upsert(
        self,
        compressed: CompressedDocuments,
        details: Mapping[str, Details] | None = None,
        means: Tensor | None = None,
    ) -> Changed:
        """Add documents, and replace those that the index holds, all of them in one commit.

        A document is replaced with all of its rows, however many it had and has: readers see all
        of the old ones or all of the new ones. What was replaced comes last in the order, as what
        was added; all other documents keep their order. Of what several processes store of a
        document at the same time, the last remains.

        Args:
            compressed: all rows of the documents, with memory `[N, m, H]` on any device.
            details: see `add`. Nothing is kept of what was stored before.
            means: what rows are ranked by in an index with ranking "mean", `[N, H]`. Default: the
                means of `compressed`. For memory that comes from another index, which has quantized
                it: the means of what it was before, see `get_means`.

        Returns:
            How many documents were added and replaced, as the index was just before.

        Raises:
            TypeError, MemoryIndexError: see `add`.
            ValueError: `means` has another shape.
            DuplicateIdError: a row has the id of a row of a document that is not in `compressed`.
        """

        def prepare() -> _Rows:
            self._require_changeable()
            return self._encoded(compressed, details, means)

        return self._tried(prepare, self._upserted)

    def delete(self, document_ids: Sequence[str], *, missing_ok: bool = False) -> int:
        """Delete documents with all of their rows, in one commit.

        Others keep their ids and their order. Files that hold what was deleted stay until
        `compact` and `clean_up` remove them.

        Args:
            document_ids: any number of them; one may come twice.
            missing_ok: leave out documents that are not in the index.

        Returns:
            How many documents were deleted.

        Raises:
            TypeError: `document_ids` is a single string.
            MemoryIndexError: some are not in the index, and none is deleted; names the first ten.
        """
        names = list(dict.fromkeys(as_ids(document_ids, "document_ids")))
        return self._tried(self._require_changeable, lambda *_: self._deleted(names, missing_ok))

    def _tried(
        self, prepare: Callable[[], Ready], change: Callable[[Ready, bool], Result | None]
    ) -> Result:
        """The result of a change, again while it is None: others came first, or replaced the index.

        Args:
            prepare: makes what it needs, while other processes may still change the index.
            change: is told whether this process is the only one that does, as far as is known.
        """
        self._require_writable()
        for _ in range(TRIES):
            pass_gate(self._snapshot.path)
            ready = prepare()
            # The index's own lock comes last, so that searches go on while others write.
            with self._writing.of(self._snapshot) as alone, self._lock:
                if (changed := change(ready, alone)) is not None:
                    return changed
        raise MemoryIndexError(f"{self._snapshot.path}: was upgraded or replaced while changed")

    def _heads_behind(self, earlier: Snapshot, latest: Snapshot, start: int) -> Iterable[Heads]:
        own = self._writer.appended
        commit = latest.identity, earlier.version, latest.version, file_of(latest.fragments[-1])
        if own is None or own[:4] != commit:
            return super()._heads_behind(earlier, latest, start)
        rows = range(start, start + own.batch.num_rows)
        return [decode_heads(latest.header, own.batch, rows, latest.path)]

    def _require_changeable(self) -> None:
        build.require_changeable(self._current().snapshot.header, self._snapshot.path)

    def _encoded(
        self,
        compressed: CompressedDocuments,
        details: Mapping[str, Details] | None,
        means: Tensor | None = None,
    ) -> _Rows:
        header = self._current().snapshot.header
        check_documents(header, self._snapshot.path, compressed)
        batch = encode(header, compressed, details, means)
        return _Rows(header, compressed.ids, list(dict.fromkeys(compressed.document_ids)), batch)

    def _upserted(self, rows: _Rows, alone: bool) -> Changed | None:
        catalog = self._read_catalog()
        if self._header != rows.header:
            return None
        there = [name for name in rows.document_ids if name in catalog.documents]
        free = {-1, *(row for name in there for row in catalog.rows_of(name))}
        if taken := [name for name in rows.ids if catalog.rows.get(name, -1) not in free]:
            raise DuplicateIdError(taken)
        if rows.ids and not self._writer.replace(
            self._snapshot, rows.batch, new=not there, alone=alone
        ):
            return None
        return Changed(len(rows.document_ids) - len(there), len(there))

    def _deleted(self, names: list[str], missing_ok: bool) -> int | None:
        catalog = self._read_catalog()
        build.require_changeable(self._header, self._snapshot.path)
        there = [name for name in names if name in catalog.documents]
        if len(there) < len(names) and not missing_ok:
            raise MemoryIndexError(unknown(self._snapshot.path, names, catalog.documents))
        if there and not self._writer.delete(self._snapshot, there):
            return None
        return len(there)

    def _added(self, rows: _Rows, alone: bool) -> bool | None:
        """Add; None if others came first, or upgraded or replaced the index before that."""
        self._refuse_duplicates(rows)
        if self._header != rows.header:
            return None
        try:
            done = not rows.ids or self._writer.commit(self._snapshot, rows.batch, alone=alone)
            return done or None
        except UnseenError:
            raise
        except MemoryIndexError:
            # Another process may have added one of the ids since they were compared.
            self._refuse_duplicates(rows)
            raise

    def _refuse_duplicates(self, rows: _Rows) -> None:
        """Refuse rows that are there, and rows of documents that are there with other rows."""
        catalog = self._read_catalog()
        there = [name for name in rows.ids if name in catalog.rows]
        there = there or [name for name in rows.document_ids if name in catalog.documents]
        if there:
            raise DuplicateIdError(there)


def unknown(path: str, names: Sequence[str], known: Container[str]) -> str:
    """What to say of documents that are not in an index."""
    missing = [name for name in names if name not in known]
    shown = ", ".join(map(repr, missing[:_SHOWN]))
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return f"{path}: no document has the id {shown}{more}"
