"""Compress documents and store them, leaving out those that cannot be compressed or stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clara.corpus import CorpusDocument, Failure
from clara.data.values import DataError, shown
from clara.index import Details, DuplicateIdError, MemoryIndex
from clara.index.corpus import Compress
from clara.memory.documents import CompressedDocuments
from clara.sync.built import Built

Fail = Callable[[Failure], None]
"""Is told of every document that is left out."""

Postpone = Callable[[CorpusDocument], bool]
"""Is asked whether a document is stored later."""


def compressed_of(
    documents: Sequence[CorpusDocument],
    compress: Compress,
    fail: Fail,
    on_progress: Callable[[int], None],
) -> list[CompressedDocuments]:
    """Memory of documents, in their order. Where some are at fault, the others have theirs.

    Args:
        compress: raises DataError for documents that it cannot read, before it computes anything.
    """
    try:
        plain = [document.plain() for document in documents]
        return [compress(plain, on_progress=on_progress)] if plain else []
    except DataError as error:
        if len(documents) == 1:
            fail(Failure(documents[0].where, str(error)))
            return []
    half = len(documents) // 2
    found = compressed_of(documents[:half], compress, fail, on_progress)
    return found + compressed_of(documents[half:], compress, fail, on_progress)


def store(
    index: MemoryIndex,
    documents: Sequence[CorpusDocument],
    compressed: CompressedDocuments,
    fail: Fail,
    built: Built,
    postpone: Postpone = lambda document: False,
) -> None:
    """Add and replace documents in one commit, and count them.

    A document is left out if a chunk of it has the name of another document, or the reverse.

    Args:
        documents: at least those that were compressed.
        postpone: is asked of a document that the index has no place for, whether it is stored
            later, when others have been deleted; else it is a failure.

    Raises:
        MemoryIndexError: the index cannot be read or written.
    """
    by_id = {document.id: document for document in documents}
    owners: dict[str, str] = {}
    refused: dict[str, str] = {}
    for row, document in zip(compressed.ids, compressed.document_ids, strict=True):
        if owners.setdefault(row, document) != document:
            refused[document] = row
    while True:
        compressed = _without(compressed, refused)
        for document, row in refused.items():
            at = by_id[document].where
            fail(Failure(at, _collision(document, row)))
        if not len(compressed):
            return
        chosen = dict.fromkeys(compressed.document_ids)
        details = {name: _details(by_id[name]) for name in chosen}
        try:
            changed = index.upsert(compressed, details)
        except DuplicateIdError as error:
            rows = dict(zip(compressed.ids, compressed.document_ids, strict=True))
            refused = {rows[row]: row for row in error.ids if row in rows}
            if not refused:
                raise
            compressed = _without(compressed, refused)
            refused = {name: row for name, row in refused.items() if not postpone(by_id[name])}
            continue
        built.added += changed.added
        built.replaced += changed.replaced
        built.count_rows(compressed)
        return


def _without(compressed: CompressedDocuments, refused: dict[str, str]) -> CompressedDocuments:
    if not refused:
        return compressed
    names = compressed.document_ids
    return compressed[[row for row, name in enumerate(names) if name not in refused]]


def _details(document: CorpusDocument) -> Details:
    return Details(
        metadata=document.metadata,
        source=document.source,
        digest=document.digest,
        marks=document.marks,
    )


def _collision(document: str, row: str) -> str:
    if row == document:
        return f"document {shown(document)} has the id of a chunk of another document; rename it"
    return (
        f"document {shown(document)}: its chunk would have the id of document {shown(row)}; "
        "rename one of them"
    )
