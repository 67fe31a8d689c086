"""What becomes of each document of a source, by what an index holds already."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple

from clara.corpus.reading import OnDuplicate


class Stored(NamedTuple):
    """What an index knows of a document that it holds.

    Attributes:
        source: name of the source that it came from; None if it was added otherwise.
        digest: of the document as it was read; None if it was added otherwise.
    """

    source: str | None
    digest: str | None


class Decision(Enum):
    """What to do with a document.

    Attributes:
        ADD: the index does not hold it.
        REPLACE: the index holds it with another content.
        KEEP: the index holds it as it is, or a document of another source is kept in its place.
        REFUSE: a document of another source has its id.
    """

    ADD = "add"
    REPLACE = "replace"
    KEEP = "keep"
    REFUSE = "refuse"


def decide(
    stored: Stored | None, source: str | None, digest: str | None, on_duplicate: OnDuplicate
) -> Decision:
    """What to do with a document that was read.

    Two sources never take turns in replacing one document: it belongs to the source that brought
    it first, unless `on_duplicate` is "replace".

    Args:
        stored: what the index holds under its id, None if nothing.
        source: name of the document's source; None is the same as no other.
        digest: of the document, `CorpusDocument.digest`; None is the same as no other.
        on_duplicate: what to do where the id is that of a document of another source with another
            content.

    Example:
        >>> decide(Stored("handbook", "0a"), "handbook", "1b", "error")
        <Decision.REPLACE: 'replace'>
    """
    if stored is None:
        return Decision.ADD
    if digest is not None and stored.digest == digest:
        return Decision.KEEP
    if (source is not None and stored.source == source) or on_duplicate == "replace":
        return Decision.REPLACE
    return Decision.KEEP if on_duplicate == "skip" else Decision.REFUSE


class Pruning(NamedTuple):
    """What pruning would delete.

    Attributes:
        gone: ids of documents of the sources that are no longer in them, in the index's order.
        documents: how many documents of these sources the index held before.
    """

    gone: list[str]
    documents: int

    @property
    def is_large(self) -> bool:
        """Whether more than a tenth of the sources' documents would be deleted."""
        return is_large(len(self.gone), self.documents)


def is_large(deleted: int, documents: int) -> bool:
    """Whether a deletion is more than a tenth, so that it needs a confirmation.

    Example:
        >>> is_large(1, 10), is_large(2, 10)
        (False, True)
    """
    return 10 * deleted > documents


def plan_pruning(
    stored: Mapping[str, Stored], sources: Collection[str], seen: Collection[str]
) -> Pruning:
    """Which documents of the given sources are gone from them.

    Args:
        stored: all documents of the index, before anything was changed.
        sources: names of the sources that were read to their end, without a failure.
        seen: ids of all documents in them.
    """
    own = [name for name, each in stored.items() if each.source in sources]
    return Pruning([name for name in own if name not in seen], len(own))
