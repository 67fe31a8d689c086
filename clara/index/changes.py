"""Compare a corpus with an index: stored documents, and documents whose text has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice
from typing import Protocol

from clara.config import Overflow
from clara.data.records import Document
from clara.data.values import DataError
from clara.index.memory_index import MemoryIndex
from clara.index.texts import text_digest
from clara.memory.documents import CompressedDocuments


class Part(Protocol):
    """A text that a model reads: a whole document, its beginning, or a chunk of it."""

    @property
    def id(self) -> str: ...
    @property
    def document_id(self) -> str: ...
    @property
    def text(self) -> str: ...


Passages = Callable[[Sequence[Document], Overflow], Sequence[Part]]
"""The texts that documents become under a model, such as `Clara.passages`."""

_SHOWN = 5  # ids in a message
_AT_ONCE = 256


def stored_documents(index: MemoryIndex, corpus: str, ids: set[str]) -> set[str]:
    """Documents of a corpus that an index holds, whole or in chunks.

    Raises:
        DataError: a document of the corpus has the id of another document's chunk.
    """
    names = list(ids)
    # Other processes may add documents between two reads. Rows are read first: a document that
    # was added whole by then is among the documents read after it.
    rows = index.contains(names)
    whole = {name for name, there in zip(names, index.contains_documents(names)) if there}
    for name, there in zip(names, rows, strict=True):
        if there and name not in whole:
            (chunk,) = index.texts([name])
            raise DataError(
                f"{corpus}: document {name!r} has the id of a chunk of document "
                f"{chunk.document_id!r} in {index.path}; rename it"
            )
    return whole


def refuse_changed(
    index: MemoryIndex,
    corpus: str,
    documents: Iterable[Document],
    stored: set[str],
    *,
    overflow: Overflow,
    passages: Passages,
) -> None:
    """Refuse documents whose title or text differs from what an index holds of them.

    Nothing is computed: the digests of the stored texts are compared with those of the corpus. Of
    a text that was cut, the index has the beginning; there, what the model would keep is compared.

    Args:
        documents: those of the corpus.
        stored: which of them the index holds.

    Raises:
        DataError: some differ; names the first and their number.
        MemoryIndexError: a document differs since it is damaged.
    """
    digests = index.text_digests()
    suspects = (
        document
        for document in documents
        if document.id in stored
        and digests.get(document.id) != text_digest(document.title, [document.text])
    )
    refuse_changed_texts(index, corpus, suspects, overflow=overflow, passages=passages)


def refuse_changed_texts(
    index: MemoryIndex,
    corpus: str,
    documents: Iterable[Document],
    *,
    overflow: Overflow,
    passages: Passages,
) -> None:
    """`refuse_changed` of stored documents, reading no more of the index than their own texts."""
    changed: list[str] = []
    remaining = iter(documents)
    while group := list(islice(remaining, _AT_ONCE)):
        changed += _changed(index, group, overflow, passages)
    if changed:
        rows = _rows(index, changed[:_SHOWN])
        index.get([row for name in changed[:_SHOWN] for row in rows[name]])
        raise _changed_error(corpus, index, changed)


def refuse_other_texts(
    index: MemoryIndex, corpus: str, compressed: CompressedDocuments, documents: set[str]
) -> None:
    """Refuse rows that another process has added with another title or text.

    Args:
        compressed: what this process made of its corpus.
        documents: the document ids to compare.

    Raises:
        DataError: some differ; names the first and their number.
    """
    rows = [row for row, name in enumerate(compressed.document_ids) if name in documents]
    names = [compressed.ids[row] for row in rows]
    there = dict(zip(names, index.contains(names), strict=True))
    found = {text.id: text for text in index.texts([name for name in names if there[name]])}
    changed: dict[str, None] = {}
    for row in rows:
        other = found.get(compressed.ids[row])
        if other is None or (other.title, other.text) != (
            compressed.titles[row],
            compressed.texts[row],
        ):
            changed[compressed.document_ids[row]] = None
    if changed:
        raise _changed_error(corpus, index, list(changed))


def _changed(
    index: MemoryIndex, documents: Sequence[Document], overflow: Overflow, passages: Passages
) -> list[str]:
    """Ids of the documents that would be stored otherwise than they are."""
    rows = _rows(index, [document.id for document in documents])
    names = [name for document in documents for name in rows[document.id]]
    found = dict(zip(names, index.texts(names), strict=True))
    changed: dict[str, None] = {}
    cut: dict[str, str] = {}
    for document in documents:
        parts = [found[name] for name in rows[document.id]]
        text = "".join(part.text for part in parts)
        if any(part.title != document.title for part in parts):
            changed[document.id] = None
        elif text != document.text:
            if overflow == "truncate" and document.text.startswith(text):
                cut[document.id] = text
            else:
                changed[document.id] = None
    if cut:
        again = passages([document for document in documents if document.id in cut], overflow)
        changed |= {each.id: None for each in again if each.text != cut[each.id]}
    return [document.id for document in documents if document.id in changed]


def _rows(index: MemoryIndex, document_ids: Sequence[str]) -> dict[str, list[str]]:
    """The ids under which stored documents lie: their own, or those of their chunks."""
    rows: dict[str, list[str]] = {}
    for name, whole in zip(document_ids, index.contains(document_ids), strict=True):
        rows[name] = [name] if whole else _chunks(index, name)
    return rows


def _chunks(index: MemoryIndex, document_id: str) -> list[str]:
    rows: list[str] = []
    for number in count():
        name = f"{document_id}#{number}"
        if not index.contains([name])[0]:
            return rows
        rows.append(name)
    return rows


def _changed_error(corpus: str, index: MemoryIndex, changed: list[str]) -> DataError:
    shown = ", ".join(repr(name) for name in changed[:_SHOWN])
    more = ", …" if len(changed) > _SHOWN else ""
    one = len(changed) == 1
    return DataError(
        f"{corpus}: {len(changed)} {'document has' if one else 'documents have'} another title or "
        f"text than in {index.path} ({shown}{more}), and an index keeps what it holds: compress "
        f"the corpus into a new index, or remove {'it' if one else 'them'} from the corpus"
    )
