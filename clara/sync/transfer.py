"""Documents out of an index, and from one index into another, without compressing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from clara.corpus import CorpusDocument
from clara.corpus.reading import OnDuplicate
from clara.data.values import DataError, shown
from clara.index import Details, Entry, MemoryIndex, MemoryIndexError
from clara.index.folders import is_vacant, local_path
from clara.sync.deciding import Decision, Stored, decide

_AT_ONCE = 256  # documents
_ROWS_AT_ONCE = 4096  # of several documents, whose texts are read together
_LISTED = 10  # ids in a message


def texts_of(index: MemoryIndex, entries: Iterable[Entry]) -> Iterator[CorpusDocument]:
    """Documents of an index as they were read, chunks joined.

    Of a document that was cut the index has the beginning.

    Args:
        entries: of `index.documents` or `index.entries`.

    Raises:
        MemoryIndexError: a document is damaged, or was deleted meanwhile.
    """
    for group in _groups(entries):
        texts = iter(index.texts([row for entry in group for row in entry.rows]))
        for entry in group:
            parts = [each.text for each in islice(texts, len(entry.rows))]
            yield CorpusDocument(
                entry.document_id,
                "".join(parts),
                entry.title,
                {name: value for name, value in entry.metadata.items() if value is not None},
                entry.marks,
                source=entry.source or "",
                where=f"{index.path}: {shown(entry.document_id)}",
            )


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Documents whose texts are read together: not too many, nor too many rows unless of one."""
    group: list[Entry] = []
    rows = 0
    for entry in entries:
        if group and (len(group) == _AT_ONCE or rows + len(entry.rows) > _ROWS_AT_ONCE):
            yield group
            group, rows = [], 0
        group.append(entry)
        rows += len(entry.rows)
    if group:
        yield group


@dataclass
class Imported:
    """What was taken over from another index.

    Attributes:
        index: the folder of the one that was added to.
        added, replaced: documents.
        unchanged: documents that were there with the same digest.
        duplicates: documents that were left out since their ids were there.
    """

    index: str
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    duplicates: int = 0


def import_index(
    path: str | os.PathLike[str],
    other: MemoryIndex,
    *,
    on_duplicate: OnDuplicate = "error",
    advance: Callable[[int], None] = lambda documents: None,
) -> Imported:
    """Add the documents of another index of the same model, with their memory.

    Args:
        path: of the index to add to; a folder that is not there, or empty, becomes a new one.
        other: is read as it is now, whatever is committed to it meanwhile.
        on_duplicate: what to do where the index holds a document with the same id and another
            digest: refuse before anything is stored, leave it out, or replace it.
        advance: is told how many documents more are done.

    Raises:
        DataError: ids are there, with `on_duplicate` "error"; names the first ten.
        MemoryIndexError: an index cannot be read or written, or the two do not fit.
    """
    other = other.at_this_version()  # or digests would be of one version and texts of another
    target = _opened(local_path(path), other)
    _require_fit(target, other)
    stored = {name: Stored(*known) for name, known in target.digests().items()}
    done = Imported(target.path)
    chosen = []
    refused = []
    for entry in other.documents():
        decision = decide(stored.get(entry.document_id), None, entry.digest, on_duplicate)
        if decision in (Decision.ADD, Decision.REPLACE):
            chosen.append(entry)
        elif decision is Decision.REFUSE:
            refused.append(entry.document_id)
        elif stored[entry.document_id].digest == entry.digest is not None:
            done.unchanged += 1
        else:
            done.duplicates += 1
    if refused:
        listed = ", ".join(shown(name) for name in refused[:_LISTED])
        more = f" and {len(refused) - _LISTED:,} more" if len(refused) > _LISTED else ""
        raise DataError(
            f"{other.path}: {target.path} holds other documents with the ids {listed}{more}; "
            "choose skip or replace for duplicates"
        )
    advance(done.unchanged + done.duplicates)
    for begin in range(0, len(chosen), _AT_ONCE):
        group = chosen[begin : begin + _AT_ONCE]
        names = [entry.document_id for entry in group]
        # Else they were made of the memory as the other index has rounded it.
        means = other.get_means(names)
        changed = target.upsert(other.get_documents(names), _details(target, other, group), means)
        done.added += changed.added
        done.replaced += changed.replaced
        advance(len(group))
    return done


def _details(
    target: MemoryIndex, other: MemoryIndex, group: Sequence[Entry]
) -> dict[str, Details] | None:
    if target.columns is None:
        return None
    documents = texts_of(other, group)
    return {
        entry.document_id: details_of(entry, document)
        for entry, document in zip(group, documents, strict=True)
    }


def details_of(entry: Entry, document: CorpusDocument) -> Details:
    """Details to store a document again with, which then is what it was."""
    return Details(document.metadata, entry.source, entry.digest, document.marks)


def _opened(folder: str, other: MemoryIndex) -> MemoryIndex:
    """The index to add to, or a new one like the other."""
    if not is_vacant(folder):
        return MemoryIndex.open(folder)
    return MemoryIndex.create(
        folder,
        fingerprint=other.fingerprint,
        memory_tokens=other.memory_tokens,
        hidden_size=other.hidden_size,
        dtype=other.dtype,
        storage=other.storage,
        settings=other.settings,
        columns=other.columns,
    )


def _require_fit(target: MemoryIndex, other: MemoryIndex) -> None:
    """Refuse documents of another model, or of settings that documents of one index share.

    Raises:
        MemoryIndexError: names what differs.
    """
    if os.path.samefile(target.path, other.path):
        raise MemoryIndexError(f"{target.path}: is the index to import from itself")
    if target.fingerprint != other.fingerprint:
        raise MemoryIndexError(
            f"{other.path}: was written by another model ({other.fingerprint[:12]}, that of "
            f"{target.path} is {target.fingerprint[:12]}); build from the documents instead"
        )
    ours, theirs = target.settings, other.settings
    for name in ("compression_rate", "overflow", "memory_form", "ranking"):
        if ours.get(name) != theirs.get(name):
            raise MemoryIndexError(
                f"{other.path}: has the setting {name} {theirs.get(name)!r}, {target.path} has "
                f"{ours.get(name)!r}"
            )
    known = target.columns or {}
    for name, kind in (other.columns or {}).items():
        if known.get(name) is not kind:
            there = "has no such column" if name not in known else f"has {known[name].__name__}"
            raise MemoryIndexError(
                f"{other.path}: has the column {shown(name)} of type {kind.__name__}, "
                f"{target.path} {there}"
            )
    if other.columns is not None and target.columns is None:
        raise MemoryIndexError(f"{target.path}: has no columns for metadata, {other.path} has")
