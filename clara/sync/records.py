"""What an index keeps of the records of one file, so that a build goes on with the index."""

from __future__ import annotations

import os
from collections.abc import Callable

from clara.corpus.documents import digest_of
from clara.corpus.listing import Origin
from clara.data.records import Document
from clara.errors.checks import surrogate_flaw
from clara.index import Details, MemoryIndex
from clara.index.origins import read_origins, record_origins
from clara.sync.origins import as_text, from_text


def details_of_records(index: MemoryIndex, corpus: str) -> Callable[[Document], Details] | None:
    """The details of a file's records, none of which has metadata.

    The file is their source, as if it had been built from. If the index has another source of that
    name, they have none: so no build takes them for documents of that source.

    Args:
        index: records where the source lies.
        corpus: file of JSON lines.

    Returns:
        None for an index without columns for metadata, which keeps no details.

    Raises:
        MemoryIndexError: the index cannot be read or written.
    """
    if index.columns is None:
        return None
    source = _source(index, corpus)

    def details(document: Document) -> Details:
        return Details(source=source, digest=digest_of(document.text, document.title or None, {}))

    return details


def _source(index: MemoryIndex, corpus: str) -> str | None:
    """The name of the file as a source, recorded in the index; None if it cannot be that."""
    origin = Origin(os.path.realpath(corpus))
    name = os.path.basename(os.path.normpath(corpus))
    if surrogate_flaw(name):
        return None
    recorded = read_origins(index.path).get(name)
    if recorded is not None and from_text(recorded) != origin:
        return None
    record_origins(index.path, {name: as_text(origin)})
    return name
