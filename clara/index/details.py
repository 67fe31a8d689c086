"""What an index stores of a document beside its memory: metadata, and where its text is from.

Only an index that was made with columns for metadata has it. A document with a long text is many
rows. Each of them has the metadata, the source and the digest of the document, and a place of its
own: where its text begins, and the marks in it, with the one that it begins in, as JSON: a list of
offsets in the document's text and labels. An index without `Header.marks` has only the label of the
page or heading that a row begins in. The checksum is

    details_digest = blake2b(source, document_digest, offset, marks, metadata…)  "clara.details"

with the metadata in the order of their columns: strings in UTF-8, integers and floats as 8 bytes,
little-endian, booleans as one.
"""

from __future__ import annotations

import json
import math
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from clara.data.marks import Mark, Scalar, place_of
from clara.errors import shortened
from clara.errors.checks import is_integer, is_number, surrogate_flaw
from clara.index.arrays import values_of
from clara.index.digests import ABSENT, joined_digest, length, number
from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.index.heads import Heads, damaged
from clara.memory.documents import CompressedDocuments

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_NAMES = {"str": "a string", "int": "an integer", "float": "a float", "bool": "a boolean"}
_FLOAT = struct.Struct("<d")
_VALUE_BYTES = 8  # of a number, or of where a string ends
_EXACT = 2**53  # integers up to here are floats, too
_MOST_BYTES = 2**31 - 1
_SHOWN = 80


@dataclass(frozen=True)
class Details:
    """What is known of a document beside its text and title.

    Attributes:
        metadata: values by the names of the index's columns; a column that is missing is null.
        source: name of the source that the document comes from.
        digest: of the document as it was read, such as `CorpusDocument.digest`.
        marks: pages and headings in the text of the whole document, by offset.
    """

    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    source: str | None = None
    digest: str | None = None
    marks: tuple[Mark, ...] = ()


class RowDetails(NamedTuple):
    """What is stored of a row.

    Attributes:
        digest: of its document.
        offset: characters of the document's text before the row's.
        place: the page or heading that its text begins in.
        metadata: by column, null ones too.
        marks: the pages and headings in its text and the one that it begins in, by offset in the
            document's text; None in an index that knows only the last.
    """

    source: str | None
    digest: str | None
    offset: int
    place: str | None
    metadata: dict[str, Scalar]
    marks: tuple[Mark, ...] | None = None


def marks_of(rows: Sequence[RowDetails]) -> tuple[Mark, ...]:
    """The pages and headings of a document, as far as its rows know them."""
    found: list[Mark] = []
    for row in rows:
        if row.marks is not None:
            found += [mark for mark in row.marks if mark.offset >= row.offset]
        elif row.place is not None and (not found or found[-1].label != row.place):
            found.append(Mark(row.offset, row.place))
    return tuple(found)


def columns_of(types: Mapping[str, type]) -> tuple[tuple[str, str], ...]:
    """Columns as the header has them, from Python's types.

    Raises:
        TypeError: not a mapping, or another type.
    """
    if not isinstance(types, Mapping):
        raise TypeError(f"columns must be a mapping of names to types, got {type(types).__name__}")
    names = {kind: name for name, kind in _TYPES.items()}
    found = []
    for column, kind in types.items():
        if not isinstance(kind, type) or kind not in names:
            accepted = ", ".join(_TYPES)
            raise TypeError(f"columns[{column!r}] must be one of the types {accepted}: {kind!r}")
        found.append((column, names[kind]))
    return tuple(found)


def types_of(header: Header) -> dict[str, type] | None:
    """The columns of metadata with Python's types; None if the index has none."""
    if header.columns is None:
        return None
    return {name: _TYPES[kind] for name, kind in header.columns}


class EncodedDetails(NamedTuple):
    """Columns to store, by name, and what of them is among the small columns."""

    columns: dict[str, list[Any]]
    digests: list[bytes]
    sizes: list[int]


def encode_details(
    header: Header, documents: CompressedDocuments, details: Mapping[str, Details] | None
) -> EncodedDetails | None:
    """Details of rows to store; None for an index without them.

    Args:
        details: by the id of the document. Documents that are missing have none.

    Raises:
        MemoryIndexError: a value that cannot be stored; names document and column.
        TypeError: `details` or a part of it has another type.
    """
    given = {} if details is None else details
    if not isinstance(given, Mapping):
        raise TypeError(f"details must be a mapping of document ids, got {type(given).__name__}")
    if header.columns is None:
        if given:
            raise MemoryIndexError(
                "the index has no columns for metadata; make one with "
                "MemoryIndex.create(…, columns={…})"
            )
        return None
    known = set(documents.document_ids)
    for name in given:
        if name not in known:
            raise MemoryIndexError(f"details are given of {name!r}, which is not to be stored")
    plain = {name: _encoded(header, name, each) for name, each in given.items()}
    nothing = (None,) * (2 + len(header.columns))
    names = header.detail_columns
    columns: dict[str, list[Any]] = {name: [] for name in names}
    digests, sizes = [], []
    lengths = dict.fromkeys(documents.document_ids, 0)
    for name, text in zip(documents.document_ids, documents.texts, strict=True):
        lengths[name] += len(text)
    offsets = dict.fromkeys(documents.document_ids, 0)
    for name, text in zip(documents.document_ids, documents.texts, strict=True):
        source, digest, *values = plain.get(name, nothing)
        offset = offsets[name]
        offsets[name] = end = offset + len(text)
        marks = given[name].marks if name in given else ()
        end += end == lengths[name]  # a mark may stand behind the last character
        placed = _marks(header, marks, offset, end)
        row = (source, digest, offset, _utf8(placed, name, "a mark") if placed else placed, *values)
        for column, value in zip(names, row, strict=True):
            columns[column].append(value)
        row_digest, size = _digest_and_size(row)
        if size > _MOST_BYTES:
            raise MemoryIndexError(f"document {name!r}: its metadata have more than 2 GiB")
        digests.append(row_digest)
        sizes.append(size)
    return EncodedDetails(columns, digests, sizes)


def decode_details(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> list[RowDetails]:
    """Check and read what `encode_details` made, from small columns and `Header.detail_columns`.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    kinds = header.columns or ()
    stored = [_values(batch.column(name)) for name in header.detail_columns]
    found = []
    for place, row in enumerate(zip(*stored, strict=True)):
        try:
            if _digest_and_size(row)[0] != heads.digests["details_digest"][place]:
                raise ValueError
            decoded: list[Any] = [
                value.decode() if isinstance(value, bytes) else value for value in row
            ]
            source, digest, offset, label = decoded[:4]
            marks = None
            if header.marks:
                marks = tuple(_mark(*each) for each in json.loads(label or "[]"))
                label = place_of(marks, offset)
        except (ValueError, TypeError, RecursionError, struct.error):
            raise damaged(path, heads.ids[place].encode(), rows[place]) from None
        metadata = {name: value for (name, _), value in zip(kinds, decoded[4:], strict=True)}
        found.append(RowDetails(source, digest, offset, label, metadata, marks))
    return found


def _mark(offset: Any, label: Any) -> Mark:
    if not is_integer(offset) or not isinstance(label, str):
        raise ValueError
    return Mark(offset, label)


def _marks(header: Header, marks: Sequence[Mark], begin: int, end: int) -> str | None:
    """What is stored of the marks of a document with a row: text from `begin` to before `end`."""
    if not header.marks:
        return place_of(marks, begin)
    first = bisect_left(marks, begin, key=lambda mark: mark.offset)
    after = bisect_left(marks, end, key=lambda mark: mark.offset)
    if first and (first == after or marks[first].offset > begin):
        first -= 1  # the one that it begins in
    kept = marks[first:after]
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False) if kept else None


def _encoded(header: Header, document: str, details: Details) -> tuple[Any, ...]:
    """Source, digest and metadata as they are stored."""
    if not isinstance(details, Details):
        raise TypeError(f"details[{document!r}] must be Details, got {type(details).__name__}")
    columns = dict(header.columns or ())
    for name in details.metadata:
        if name not in columns:
            there = ", ".join(map(repr, columns)) or "none"
            raise MemoryIndexError(
                f"document {document!r}: the index has no column {shortened(repr(name), _SHOWN)} "
                f"for metadata, it has {shortened(there, 4 * _SHOWN)}"
            )
    origin = []
    for name in ("source", "digest"):
        value = getattr(details, name)
        if value is not None and not isinstance(value, str):
            raise TypeError(f"details[{document!r}].{name} must be a string or None, got {value!r}")
        origin.append(None if value is None else _utf8(value, document, name))
    values = [
        _fitted(details.metadata.get(name), kind, document, name) for name, kind in columns.items()
    ]
    return (*origin, *values)


def _fitted(value: Any, kind: str, document: str, column: str) -> Any:
    """A value of metadata as it is stored."""
    if value is None:
        return None
    fits = False
    if kind == "str":
        fits = isinstance(value, str)
    elif kind == "bool":
        fits = isinstance(value, bool)
    elif kind == "int":
        fits = is_integer(value) and -(2**63) <= value < 2**63
    elif is_number(value):
        fits = abs(value) <= _EXACT if is_integer(value) else math.isfinite(value)
    if not fits:
        expected = _NAMES[kind] + {"int": " of 64 bits", "float": ", finite"}.get(kind, "")
        raise MemoryIndexError(
            f"document {document!r}: column {column!r} of its metadata must be {expected}, "
            f"got {shortened(repr(value), _SHOWN)}"
        )
    if kind == "str":
        return _utf8(value, document, f"column {column!r}")
    return _TYPES[kind](value)


def _utf8(value: str, document: str, what: str) -> bytes:
    if flaw := surrogate_flaw(value):
        raise MemoryIndexError(f"document {document!r}: {what} {flaw}")
    return value.encode()


def _digest_and_size(row: Sequence[Any]) -> tuple[bytes, int]:
    """The checksum of a row's details, and their bytes without those that every row has."""
    parts: list[bytes] = []
    size = -_VALUE_BYTES  # of the offset
    for value in row:
        if value is None:
            parts.append(ABSENT)
        elif isinstance(value, bytes):
            parts += (length(len(value)), value)
            size += _VALUE_BYTES + len(value)
        else:
            field = _number(value)
            parts += (length(len(field)), field)
            size += 0 if isinstance(value, bool) else _VALUE_BYTES
    return joined_digest(b"clara.details", parts), size


def _number(value: bool | int | float) -> bytes:
    if isinstance(value, bool):
        return bytes([value])
    return _FLOAT.pack(value) if isinstance(value, float) else number(value)


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        found: list[Any] = column.to_pylist()
        return found
    return values_of(column)
