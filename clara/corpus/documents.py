"""What reading a corpus gives: documents with marks and metadata, and failures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from clara.data.marks import Mark, Scalar
from clara.data.records import Document
from clara.errors.checks import is_integer, surrogate_flaw


@dataclass(frozen=True)
class Extracted:
    """The text of one file, before it has an id."""

    text: str
    title: str | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class CorpusDocument:
    """A document as it was read.

    Attributes:
        id: of a record its own; of a file the source's name and the relative path.
        text: all of it, as it was extracted.
        title: None where there is none.
        metadata: the record's other fields.
        marks: pages and headings in `text`, by offset.
        kind: of the file: "jsonl", "csv", "parquet", "dataset", "text", "markdown", "html", "pdf"
            or "docx".
        where: the file, with the line or row of a record.
        source: name of the source that it comes from.
        replaces: whether an earlier document had the same id, with `on_duplicate="replace"`.
    """

    id: str
    text: str
    title: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    kind: str = ""
    where: str = ""
    source: str = ""
    replaces: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of text, title, metadata and marks; see `digest_of`."""
        return digest_of(self.text, self.title, self.metadata, self.marks)

    def plain(self) -> Document:
        """The part of it that is compressed."""
        return Document(self.id, self.text, self.title)


@dataclass(frozen=True)
class Failure:
    """A file or record that could not be read.

    Attributes:
        where: the file, with the line or row of a record.
        reason: one line.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def digest_of(
    text: str, title: str | None, metadata: Mapping[str, Scalar], marks: Sequence[Mark] = ()
) -> str:
    """SHA-256 of what a document holds, 64 hexadecimal digits.

    It depends on nothing else: not on the file's kind or time, nor on the order of the metadata.
    Values of different types differ: 1, 1.0, true and "1". A value that is null is none.

    Example:
        >>> digest_of("Aruba is an island.", None, {})[:8]
        '54752fb6'
    """
    values = {name: value for name, value in sorted(metadata.items()) if value is not None}
    content = [text, title, values, marks]
    encoded = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()


def marks_of(value: Any, text: str) -> tuple[Mark, ...] | None:
    """Marks of a text as JSON holds them; None where the value is something else."""
    if not isinstance(value, list):
        return None
    marks: list[Mark] = []
    for each in value:
        if not (isinstance(each, list) and len(each) == 2):
            return None
        offset, label = each
        if not (is_integer(offset) and 0 <= offset <= len(text) and isinstance(label, str)):
            return None
        if surrogate_flaw(label) or (marks and offset < marks[-1].offset):
            return None
        marks.append(Mark(offset, label))
    return tuple(marks)
