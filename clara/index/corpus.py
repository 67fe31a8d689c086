"""Compress a corpus into an index: make a plan, then carry it out group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from clara.config import Overflow
from clara.data.lines import Fields
from clara.data.records import Document, read_documents, read_records
from clara.data.values import DataError
from clara.index.changes import (
    Passages,
    refuse_changed,
    refuse_changed_texts,
    refuse_other_texts,
    stored_documents,
)
from clara.index.details import Details
from clara.index.errors import DuplicateIdError
from clara.index.memory_index import MemoryIndex
from clara.memory.documents import CompressedDocuments

# Documents of one commit. They are counted from the start of the corpus, also by a run that
# resumes, so that interrupted and uninterrupted runs compute the same batches.
GROUP = 256


class Compress(Protocol):
    """Makes memory of documents; `on_progress` is called with the number of rows just made."""

    def __call__(
        self, documents: Sequence[Document], *, on_progress: Callable[[int], None]
    ) -> CompressedDocuments: ...


class Advance(Protocol):
    """Is told that so many documents more are done, and what to show beside their number."""

    def __call__(self, documents: int, detail: str | None = None) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What is to be done with a corpus, after all checks that need no computing.

    Attributes:
        ids: of all its documents.
        stored: of those that the index holds.
        overflow: what becomes of long documents.
        passages: the texts that documents become.
    """

    ids: set[str]
    stored: set[str]
    overflow: Overflow
    passages: Passages


def make_plan(
    index: MemoryIndex | None,
    corpus: str,
    ids: set[str],
    overflow: Overflow,
    passages: Passages,
    *,
    every: bool = False,
) -> Plan:
    """Compare a corpus with what its documents become, and with an index to go on with.

    Args:
        index: None for a new one.
        corpus: file of JSON lines.
        ids: of its documents.
        passages: see `Passages`; it raises ValueError for a document that cannot be compressed.
        every: ask `passages` about every document, not only about those that may be at fault by
            their length or name.

    Raises:
        DataError: two documents would give rows of one name, or one differs from what the index
            holds.
        ValueError: of `passages`.
        MemoryIndexError: the index is damaged.
    """
    # Rows are read before documents, as in `stored_documents`.
    rows = set() if index is None else set(index.ids())
    stored = set() if index is None else stored_documents(index, corpus, ids)
    _check_rows(corpus, ids, overflow, passages, rows, stored, every)
    if index is not None and stored:
        documents = read_documents(corpus)
        refuse_changed(index, corpus, documents, stored, overflow=overflow, passages=passages)
    return Plan(ids, stored, overflow, passages)


def _check_rows(
    corpus: str,
    ids: set[str],
    overflow: Overflow,
    passages: Passages,
    rows: set[str],
    stored: set[str],
    every: bool,
) -> None:
    """Refuse a corpus in which a document is too long, or two would give rows of one name.

    Args:
        rows: ids of the rows that the index holds.
        stored: documents of the corpus among them, which give no rows any more.

    Only documents that can be at fault are tokenised: all of them with "error", with "chunk"
    those whose chunks could be named as another document is.
    """
    if overflow == "error" or every:
        suspects = ids
    elif overflow == "chunk":
        suspects = {base for base in map(_base, ids) if base in ids}
        suspects |= {base for base in map(_base, rows) if base in ids and base not in stored}
    else:
        suspects = set()
    if not suspects:
        return
    for group in groups(corpus):
        chosen = [document for document, _ in group if document.id in suspects]
        for passage in passages(chosen, overflow):
            if passage.id == passage.document_id:
                continue
            if passage.id in ids or (passage.document_id not in stored and passage.id in rows):
                where = "" if passage.id in ids else " in the index"
                raise DataError(
                    f"{corpus}: a chunk of document {passage.document_id!r} would have the id of "
                    f"document {passage.id!r}{where}; rename one of them"
                )


def _base(name: str) -> str:
    """The document that a row of this name would be a chunk of."""
    return name.rpartition("#")[0]


@dataclass
class Work:
    """Compressing the documents of a corpus that an index does not hold.

    Other processes may add documents of the corpus at the same time, such as a second run of the
    same command. Theirs are left out, also if that shows only when ours are to be stored.

    Attributes:
        compress: with the plan's `overflow`.
        details: what is stored of a document beside its text, by the fields of its record; None
            for an index without columns.
        documents, rows, tokens: what was added, and tokens of its texts.
        memory_tokens: what was written of them.
        short_documents: those of the documents that have fewer tokens than memory tokens.
        added_by_others: documents that other processes added meanwhile.
    """

    index: MemoryIndex
    corpus: str
    plan: Plan
    compress: Compress
    details: Callable[[Document, Fields], Details] | None = None
    documents: int = 0
    rows: int = 0
    tokens: int = 0
    memory_tokens: int = 0
    short_documents: int = 0
    added_by_others: int = 0

    def run(self, advance: Advance) -> None:
        """Compress group by group, a commit for each.

        Raises:
            DataError: another process has added a document of the corpus with another text.
            MemoryIndexError: the index cannot be read or written.
        """
        for group in groups(self.corpus):
            todo = [record for record in group if record[0].id not in self.plan.stored]
            if todo:
                self._compress(todo, advance)

    def _compress(self, records: list[tuple[Document, Fields]], advance: Advance) -> None:
        shown = Shown(len(records), advance)
        todo = self._without_others([document for document, _ in records])
        if not todo:
            shown.all_done()
            return
        added = self._added(
            self.compress(todo, on_progress=shown.rows_done), self._details(todo, records)
        )
        self.documents += len(set(added.document_ids))
        self.rows += len(added)
        self.tokens += sum(added.token_counts)
        self.memory_tokens += sum(added.counts)
        self.short_documents += count_short(added)
        reached = self.tokens / self.memory_tokens if self.memory_tokens else 0.0
        shown.all_done(f"{reached:.1f}x compression")

    def _details(
        self, documents: list[Document], records: list[tuple[Document, Fields]]
    ) -> dict[str, Details] | None:
        """The details of documents that are among some records, by their ids."""
        if self.details is None:
            return None
        fields = {document.id: each for document, each in records}
        return {each.id: self.details(each, fields[each.id]) for each in documents}

    def _without_others(self, documents: list[Document]) -> list[Document]:
        """The documents that no other process has added since the work began."""
        there = self.index.contains_documents([document.id for document in documents])
        others = [document for document, known in zip(documents, there) if known]
        if others:
            refuse_changed_texts(
                self.index,
                self.corpus,
                others,
                overflow=self.plan.overflow,
                passages=self.plan.passages,
            )
            self.added_by_others += len(others)
        return [document for document, known in zip(documents, there) if not known]

    def _added(
        self, compressed: CompressedDocuments, details: dict[str, Details] | None
    ) -> CompressedDocuments:
        """Store documents but those that another process adds first; what was stored."""
        while True:
            try:
                self.index.add(compressed, details)
                return compressed
            except DuplicateIdError:
                names = list(dict.fromkeys(compressed.document_ids))
                there = zip(names, self.index.contains_documents(names))
                others = {name for name, known in there if known}
                if not others:  # an id of ours is that of another document's chunk
                    raise
                refuse_other_texts(self.index, self.corpus, compressed, others)
                self.added_by_others += len(others)
                rows = [
                    row for row, name in enumerate(compressed.document_ids) if name not in others
                ]
                compressed = compressed[rows]
                if details is not None:
                    details = {each: of for each, of in details.items() if each not in others}


class Shown:
    """Progress of one group: rows are reported, documents are shown."""

    def __init__(self, documents: int, advance: Advance) -> None:
        self._left = documents
        self._advance = advance

    def rows_done(self, rows: int) -> None:
        documents = min(rows, self._left)
        self._left -= documents
        self._advance(documents)

    def all_done(self, detail: str | None = None) -> None:
        self._advance(self._left, detail)
        self._left = 0


def groups(corpus: str) -> Iterator[list[tuple[Document, Fields]]]:
    """The documents of a corpus and the fields of their records, `GROUP` at a time."""
    records = read_records(corpus)
    while group := list(islice(records, GROUP)):
        yield group


def count_short(compressed: CompressedDocuments) -> int:
    """How many documents have fewer tokens than memory tokens; chunks of long ones do not count."""
    lists = compressed.ids, compressed.document_ids, compressed.token_counts, compressed.counts
    rows = zip(*lists, strict=True)
    return sum(name == document and tokens < written for name, document, tokens, written in rows)
