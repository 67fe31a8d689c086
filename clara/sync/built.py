"""What a build did."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from clara.corpus import CorpusError
from clara.index.corpus import count_short
from clara.index.folders import bytes_on_disk
from clara.memory.documents import CompressedDocuments
from clara.terminal.printing import size

_SIZE_EVERY = 10.0  # seconds between two looks at how large an index is


@dataclass
class Built:
    """What was done to an index.

    Attributes:
        index: its folder; None if there is none, since no document could be stored.
        added, replaced, deleted: documents.
        unchanged: documents that were there already as they are in the sources.
        failed: files, records and documents that could not be read or stored.
        duplicates: documents that were left out since their ids are those of others.
        rows, tokens, memory_tokens: of what was added and replaced.
        short_documents: those of the documents that have fewer tokens than memory tokens.
        seconds: wall time.
        left_out: fields of records that the index has no column for, and where each was first.
        not_deleted: documents that are gone from their sources and were not deleted.
        why_not_deleted: None unless pruning was asked for and not done.
    """

    index: str | None = None
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: int = 0
    duplicates: int = 0
    rows: int = 0
    tokens: int = 0
    memory_tokens: int = 0
    short_documents: int = 0
    seconds: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)
    not_deleted: int = 0
    why_not_deleted: str | None = None

    @property
    def effective_compression(self) -> float:
        """Tokens read per memory token written; 0 when nothing was written."""
        return self.tokens / self.memory_tokens if self.memory_tokens else 0.0

    @property
    def documents_per_second(self) -> float:
        """Documents added and replaced per second."""
        return (self.added + self.replaced) / self.seconds if self.seconds else 0.0

    def count_rows(self, compressed: CompressedDocuments) -> None:
        """Count rows that were stored."""
        self.rows += len(compressed)
        self.tokens += sum(compressed.token_counts)
        self.memory_tokens += sum(compressed.counts)
        self.short_documents += count_short(compressed)

    def as_fields(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        return {
            **asdict(self),
            "effective_compression": self.effective_compression,
            "documents_per_second": self.documents_per_second,
        }


class Detail:
    """What stands beside the number of documents: the compression and the size so far."""

    def __init__(self, built: Built) -> None:
        self._built = built
        self._size, self._sized = "", 0.0

    def of(self, folder: str | None) -> str:
        """The detail, with the size of this index; every so often, as it reads the folder."""
        now = time.monotonic()
        if folder is not None and now - self._sized >= _SIZE_EVERY:
            self._sized, self._size = now, f", {size(bytes_on_disk(folder))}"
        return f"{self._built.effective_compression:.1f}x compression{self._size}"


def no_progress(documents: int, detail: str | None = None) -> None:
    """Who is told of progress where nobody is."""


class BuildError(CorpusError):
    """Some documents could not be read or stored. All others are in the index.

    Attributes:
        built: what was done.
    """

    def __init__(self, message: str, built: Built) -> None:
        super().__init__(message)
        self.built = built

    def __reduce__(self) -> tuple[type, tuple[str, Built]]:
        return type(self), (str(self), self.built)
