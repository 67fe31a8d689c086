"""Find every damaged document of an open index, and make its memory again from its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from clara.data.records import Document
from clara.index.checking import Damaged, damaged_rows, damaged_rows_apart
from clara.index.contents import Contents
from clara.index.details import Details, marks_of
from clara.index.layout import RowEntry
from clara.index.snapshot import Snapshot
from clara.index.upkeep import Upkeep
from clara.memory.documents import CompressedDocuments

_AT_ONCE = 256  # documents that are compressed and committed together
_MENDED = ("memory", "mean")  # what the text is enough for


class Repaired(NamedTuple):
    """What `repair` did.

    Attributes:
        documents: ids of those whose memory was made again.
        left: what is damaged still: the text itself, or what cannot be made from it.
    """

    documents: list[str]
    left: list[Damaged]


class Verifying(Upkeep):
    """The methods of `MemoryIndex` that look for damage."""

    def verify(self, *, apart: bool = True) -> Iterator[Damaged]:
        """Read all documents and compare them with their checksums.

        Args:
            apart: read in a child process. A damaged file may end the process that reads it: then
                what is yielded names the file, and the others are read.

        Yields:
            Everything that is damaged, in the order that it lies in. Nothing if all is intact.

        Raises:
            MemoryIndexError: the index cannot be opened at all.
        """
        pinned = self._snapshot.pinned
        snapshot = self._snapshot if pinned else Snapshot.latest(self._snapshot.path)
        if apart:
            yield from damaged_rows_apart(snapshot)
            return
        for found in damaged_rows(snapshot):
            if isinstance(found, Damaged):
                yield found

    def repair(
        self,
        compress: Callable[[Sequence[Document]], CompressedDocuments],
        *,
        apart: bool = True,
        found: Iterable[Damaged] | None = None,
    ) -> Repaired:
        """Make damaged memory again from the texts that the index holds.

        A document is repaired if only its memory or the mean of it is damaged. It keeps its texts,
        metadata and places, and comes last in the order, as what `upsert` replaces.

        Args:
            compress: memory of whole documents by the index's model, such as `Clara.compress`.
            apart: see `verify`.
            found: all that `verify` has yielded just before. Default: look again.

        Raises:
            MemoryIndexError: what `compress` gave is not of the index's model, the index cannot be
                written, or the names of a row are damaged, without which nothing can be changed.
        """
        self._require_writable()
        damages: dict[str | None, list[Damaged]] = {}
        for each in self.verify(apart=apart) if found is None else found:
            damages.setdefault(each.document_id, []).append(each)
        mended = dict.fromkeys(
            name
            for name, parts in damages.items()
            if name is not None and all(part.what in _MENDED for part in parts)
        )
        left = [part for name, parts in damages.items() if name not in mended for part in parts]
        names = iter(mended)
        while group := list(islice(names, _AT_ONCE)):
            documents, details = self._read(partial(_kept, group))
            self.upsert(compress(documents), details)
        return Repaired(list(mended), left)


def _kept(
    names: Sequence[str], contents: Contents
) -> tuple[list[Document], Mapping[str, Details] | None]:
    """Texts and details of documents whose memory cannot be read."""
    documents: list[Document] = []
    details: dict[str, Details] = {}
    for name in names:
        rows = contents.rows_of_all([name])
        texts = contents.take_texts(rows)
        documents.append(Document(name, "".join(text.text for text in texts), texts[0].title))
        if contents.snapshot.header.columns is not None:
            details[name] = _details(contents.take_entries(rows))
    return documents, details or None


def _details(rows: Sequence[RowEntry]) -> Details:
    """Details of a document that give its rows the places that they have."""
    kept = [row.details for row in rows if row.details is not None]
    return Details(kept[0].metadata, kept[0].source, kept[0].digest, marks_of(kept))
