"""The small columns of rows: names, counts and checksums, read without texts and memory.

Lance keeps no checksums, so every row has its own. Each digest has 16 bytes and is personalised.
Numbers are little-endian int64. Each field is preceded by its length in bytes, and in place of an
absent field stands the length -1: no two rows give the same input. In format 3:

    text_digest   = blake2b(text)                 personalised "clara.row.text"
    memory_digest = blake2b(memory, scales)       personalised "clara.memory"
    mean_digest   = blake2b(mean)                 personalised "clara.mean"
    row_digest    = blake2b(id, document_id, title, tokens, vectors, text_bytes, text_digest,
                            memory_digest, mean_digest, sequence)        "clara.row.3"

so each of texts, memory and means can be read and checked alone. In an index with columns for
metadata, `details_bytes` follows `text_bytes` and `details_digest` the mean's, which is

    details_digest = blake2b(source, document_digest, offset, place, metadata…)  "clara.details"

In formats 1 and 2:

    body_digest = blake2b(text, memory bytes)                            "clara.body"
    row_digest  = blake2b(id, document_id, title, tokens, body_digest, sequence)   "clara.row"

There, a row without a sequence ends with the body's digest.

Lance may write the rows of one commit in another order than they were given in. `sequence` keeps
that order: rows that were added together share its upper 32 bits, a random number, and its lower
32 bits count them. Format 1 does not have it, and upgraded rows are null in it: both lie in order.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from clara.errors.checks import surrogate_flaw
from clara.index.arrays import values_of
from clara.index.digests import ABSENT, DIGEST_BYTES, joined_digest, length, number
from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.memory.documents import CompressedDocuments

_MOST_TOKENS = 2**31 - 1
_TAG_BITS = 31  # and the sign bit stays 0
_NUMBER_BYTES = 8
_NUMBER = length(_NUMBER_BYTES)


@dataclass(frozen=True)
class Heads:
    """The small columns of some rows, checked.

    Attributes:
        counts: memory tokens of each row.
        digests: of each row, by the name of the column.
        string_bytes: of ids, titles and texts of each row, in UTF-8, and `details_bytes`; None in
            formats 1 and 2, where texts have to be read for it.
    """

    ids: list[str]
    document_ids: list[str]
    titles: list[str | None]
    token_counts: list[int]
    counts: list[int]
    digests: dict[str, list[bytes]]
    sequences: list[int | None]
    string_bytes: list[int] | None


def encode_heads(
    header: Header,
    documents: CompressedDocuments,
    beside: Callable[[list[bytes]], Mapping[str, list[Any]]],
) -> dict[str, list[Any]]:
    """The small columns and the texts of rows to store.

    Args:
        beside: of the texts of all rows, the columns that tell of what lies beside the small ones.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    ids = documents.ids
    for name, tokens in zip(ids, documents.token_counts, strict=True):
        if not 0 <= tokens <= _MOST_TOKENS:
            raise MemoryIndexError(f"document {name!r}: token count {tokens} is out of range")
    texts: list[bytes] = _utf8(documents.texts, "text", ids)
    sizes = list(map(len, texts))
    if sizes and max(sizes) > _MOST_TOKENS:
        name = ids[sizes.index(max(sizes))]
        raise MemoryIndexError(f"document {name!r}: its text has more than 2 GiB")
    tag = secrets.randbits(_TAG_BITS) << 32
    found: dict[str, list[Any]] = {
        "id": _utf8(ids, "id", ids),
        "document_id": _utf8(documents.document_ids, "document_id", ids),
        "title": _utf8(documents.titles, "title", ids),
        "text": texts,
        "tokens": list(map(int, documents.token_counts)),
        "vectors": list(map(int, documents.counts)),
        "text_bytes": sizes,
        "sequence": list(range(tag, tag + len(ids))),
        **beside(texts),
    }
    names = [name for name in (*header.head_columns, "text") if name != "row_digest"]
    columns = {name: found[name] for name in names}
    columns["row_digest"] = list(_row_digests(header, columns))
    return columns


def record_batch(
    schema: pa.Schema, columns: dict[str, list[Any]], arrays: dict[str, pa.Array]
) -> pa.RecordBatch:
    """Rows to store, from the columns of `encode_heads` and those that are arrays already."""
    made = {name: _array(values, schema.field(name)) for name, values in columns.items()} | arrays
    return pa.record_batch([made[name] for name in schema.names], schema=schema)


def decode_heads(header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str) -> Heads:
    """Check and read the small columns, `Header.head_columns`.

    Args:
        rows: where in the dataset the batch is from, for messages.

    Raises:
        MemoryIndexError: a row is not what was written; names it.
    """
    columns: dict[str, list[Any]] = {}
    for name in header.head_columns:
        column = batch.column(name)
        columns[name] = values_of(column)
        if column.null_count and name not in ("title", "sequence"):
            row = columns[name].index(None)
            raise damaged(path, columns["id"][row], rows[row])
    for row, expected in enumerate(_row_digests(header, columns)):
        if columns["row_digest"][row] != expected:
            raise damaged(path, columns["id"][row], rows[row])
    return Heads(
        ids=[value.decode() for value in columns["id"]],
        document_ids=[value.decode() for value in columns["document_id"]],
        titles=[None if value is None else value.decode() for value in columns["title"]],
        token_counts=columns["tokens"],
        counts=columns.get("vectors") or header.counts(columns["tokens"]),
        digests={name: columns[name] for name in header.digest_columns},
        sequences=columns.get("sequence") or [None] * batch.num_rows,
        string_bytes=_string_sizes(columns) if header.format_version >= 3 else None,
    )


def damaged(path: str, name: bytes | None, row: int) -> MemoryIndexError:
    """The error for a document that is not what was written."""
    shown = "without an id" if name is None else repr(name.decode(errors="replace"))
    return MemoryIndexError(
        f"{path}: document {shown} (row {row}) is damaged: not what was written, by its checksum"
    )


def _string_sizes(columns: dict[str, list[Any]]) -> list[int]:
    names = zip(columns["id"], columns["document_id"], columns["title"], strict=True)
    sizes = (sum(map(len, filter(None, fields))) for fields in names)
    details = columns.get("details_bytes") or repeat(0)
    return [size + text + more for size, text, more in zip(sizes, columns["text_bytes"], details)]


def _row_digests(header: Header, columns: Mapping[str, list[Any]]) -> Iterator[bytes]:
    """The digest of each row, from the other small columns."""
    newest = header.format_version >= 3
    numbers = [columns[name] for name in ("tokens", *header.size_columns)]
    digests: list[list[bytes] | None] = [columns[name] for name in header.digest_columns]
    if newest and header.mean_bytes is None:
        digests.insert(2, None)
    count = len(columns["id"])
    sequences = columns.get("sequence")
    if sequences is None or None in sequences:
        ordered = sequences or [None] * count
        absent = ABSENT if newest else b""
        ends = [absent if each is None else _NUMBER + number(each) for each in ordered]
        width, fixed = _joined(count, numbers, digests)
    else:
        ends = [b""] * count
        width, fixed = _joined(count, numbers, digests, sequences)
    label = b"clara.row.3" if newest else b"clara.row"
    names = zip(columns["id"], columns["document_id"], columns["title"], ends, strict=True)
    for place, (name, document, title, end) in enumerate(names):
        begin = place * width
        parts = (
            length(len(name)),
            name,
            length(len(document)),
            document,
            *((ABSENT,) if title is None else (length(len(title)), title)),
            fixed[begin : begin + width],
            end,
        )
        yield joined_digest(label, parts)


def _joined(
    count: int,
    numbers: Sequence[list[int]],
    digests: Sequence[list[bytes] | None],
    sequences: list[int] | None = None,
) -> tuple[int, bytes]:
    """The fields of all rows that have the same size in each, with their lengths; and that size."""
    kinds: list[Any] = []
    values: list[Any] = []
    for number_column in numbers:
        kinds += ["<i8", "<i8"]
        values += [_NUMBER_BYTES, number_column]
    for column in digests:
        kinds.append("<i8")
        if column is None:
            values.append(-1)
            continue
        kinds.append(f"V{DIGEST_BYTES}")
        values += [DIGEST_BYTES, np.frombuffer(b"".join(column), f"V{DIGEST_BYTES}")]
    if sequences is not None:
        kinds += ["<i8", "<i8"]
        values += [_NUMBER_BYTES, sequences]
    rows = np.empty(count, np.dtype([(f"{place}", kind) for place, kind in enumerate(kinds)]))
    for place, value in enumerate(values):
        rows[f"{place}"] = value
    return rows.dtype.itemsize, rows.tobytes()


def _utf8(values: Sequence[str | None], field: str, names: Sequence[str]) -> list[Any]:
    """Strings as they are stored; None stays."""
    try:
        return [None if value is None else value.encode() for value in values]
    except UnicodeEncodeError:
        for value, name in zip(values, names, strict=True):
            if value is not None and (flaw := surrogate_flaw(value)):
                raise MemoryIndexError(f"document {name!r}: {field} {flaw}") from None
        raise


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    """A column of numbers, digests, or strings that are UTF-8 already."""
    if field.type == pa.large_string():
        return pa.array(values, pa.large_binary()).cast(field.type)
    return pa.array(values, field.type)
