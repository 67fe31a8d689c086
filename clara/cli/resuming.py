"""What an index holds of a corpus, for `clara compress --resume`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from clara.cli.errors import CommandError

if TYPE_CHECKING:
    from clara.data.records import Document
    from clara.index import MemoryIndex
    from clara.memory.documents import CompressedDocuments
    from clara.model.clara import Clara

_SHOWN = 5  # ids in a message
_AT_ONCE = 256


def stored_documents(index: MemoryIndex, corpus: str, ids: set[str]) -> set[str]:
    """Documents of a corpus that an index holds, whole or in chunks.

    Raises:
        CommandError: a document of the corpus has the id of another document's chunk.
    """
    names = list(ids)
    whole = {name for name, there in zip(names, index.contains_documents(names)) if there}
    for name, there in zip(names, index.contains(names), strict=True):
        if there and name not in whole:
            (chunk,) = index.texts([name])
            raise CommandError(
                f"{corpus}: document {name!r} has the id of a chunk of document "
                f"{chunk.document_id!r} in {index.path}; rename it"
            )
    return whole


def refuse_changed(
    model: Clara,
    index: MemoryIndex,
    corpus: str,
    documents: Iterable[Document],
    *,
    overflow: Any,
    stored: set[str],
) -> None:
    """Refuse documents whose title or text differs from what an index holds of them.

    Nothing is computed: the digests of the stored texts are compared with those of the corpus. Of
    a text that was cut, the index has the beginning; there, what the model would keep is compared.

    Args:
        documents: those of the corpus.
        stored: which of them the index holds.

    Raises:
        CommandError: some differ; names the first and their number.
        MemoryIndexError: a document differs since it is damaged.
    """
    from clara.index import text_digest

    digests = index.text_digests()
    suspects = (
        document
        for document in documents
        if document.id in stored
        and digests.get(document.id) != text_digest(document.title, [document.text])
    )
    refuse_changed_texts(model, index, corpus, suspects, overflow=overflow)


def refuse_changed_texts(
    model: Clara,
    index: MemoryIndex,
    corpus: str,
    documents: Iterable[Document],
    *,
    overflow: Any,
) -> None:
    """`refuse_changed` of stored documents, reading no more of the index than their own texts."""
    changed: list[str] = []
    remaining = iter(documents)
    while group := list(islice(remaining, _AT_ONCE)):
        changed += _changed(model, index, group, overflow)
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
        CommandError: some differ; names the first and their number.
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
    model: Clara, index: MemoryIndex, documents: Sequence[Document], overflow: Any
) -> list[str]:
    """Ids of the documents that would be stored otherwise than they are."""
    from clara.text.passages import prepare_passages

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
        passages = prepare_passages(
            model.tokenizer,
            [document for document in documents if document.id in cut],
            limit=model.config.document_length,
            overflow=overflow,
        )
        changed |= {each.id: None for each in passages if each.text != cut[each.id]}
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


def _changed_error(corpus: str, index: MemoryIndex, changed: list[str]) -> CommandError:
    shown = ", ".join(repr(name) for name in changed[:_SHOWN])
    more = ", …" if len(changed) > _SHOWN else ""
    one = len(changed) == 1
    return CommandError(
        f"{corpus}: {len(changed)} {'document has' if one else 'documents have'} another title or "
        f"text than in {index.path} ({shown}{more}), and an index keeps what it holds: compress "
        f"the corpus into a new index, or remove {'it' if one else 'them'} from the corpus"
    )
