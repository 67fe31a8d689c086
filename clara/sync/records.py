"""What an index keeps of the records of one file, so that a build goes on with the index."""

from __future__ import annotations

import os
from collections.abc import Callable

from clara.corpus.documents import digest_of, marks_of
from clara.corpus.fields import MARKS_FIELD
from clara.corpus.listing import Origin
from clara.data.lines import Fields
from clara.data.records import Document
from clara.errors.checks import surrogate_flaw
from clara.index import Details, MemoryIndex
from clara.index.origins import read_origins, record_origins
from clara.sync.origins import as_text, from_text


def details_of_records(
    index: MemoryIndex, corpus: str
) -> Callable[[Document, Fields], Details] | None:
    """The details of a file's records, without metadata.

    The file is their source, as if it had been built from. If the index has another source of that
    name, or one that the file lies in, they have none: so no build takes them for documents of the
    one or for a second time those of the other.

    Args:
        index: records where the source lies.
        corpus: file of JSON lines.

    Returns:
        Gives those of a record, by its document and fields. None for an index without columns for
        metadata, which keeps no details.

    Raises:
        MemoryIndexError: the index cannot be read or written.
    """
    if index.columns is None:
        return None
    source = _source(index, corpus)

    def details(document: Document, fields: Fields) -> Details:
        marks = marks_of(fields.values.get(MARKS_FIELD), document.text) or ()
        digest = digest_of(document.text, document.title or None, {}, marks)
        return Details(source=source, digest=digest, marks=marks)

    return details


def _source(index: MemoryIndex, corpus: str) -> str | None:
    """The name of the file as a source, recorded in the index; None if it cannot be that."""
    origin = Origin(os.path.realpath(corpus))
    name = os.path.basename(os.path.normpath(corpus))
    if surrogate_flaw(name):
        return None
    for other, text in read_origins(index.path).items():
        known = from_text(text)
        if other == name:
            is_taken = known != origin
        else:
            is_taken = known is not None and known.holds(origin.path)
        if is_taken:
            return None
    record_origins(index.path, {name: as_text(origin)})
    return name
