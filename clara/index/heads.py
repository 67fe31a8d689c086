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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pyarrow as pa

from clara.errors.checks import surrogate_flaw
from clara.index.arrays import values_of
from clara.index.digests import number, small_digest
from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.memory.documents import CompressedDocuments

_MOST_TOKENS = 2**31 - 1
_TAG_BITS = 31  # and the sign bit stays 0


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
    header: Header, documents: CompressedDocuments, body: Callable[[int, bytes], dict[str, Any]]
) -> dict[str, list[Any]]:
    """The small columns and the texts of rows to store.

    Args:
        body: of a row and its text, the digests of what lies beside the small columns.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    names = [*header.head_columns, "text"]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    tag = secrets.randbits(_TAG_BITS) << 32
    for row, name in enumerate(documents.ids):
        tokens = documents.token_counts[row]
        if not 0 <= tokens <= _MOST_TOKENS:
            raise MemoryIndexError(f"document {name!r}: token count {tokens} is out of range")
        title = documents.titles[row]
        text = _utf8(documents.texts[row], "text", name)
        if len(text) > _MOST_TOKENS:
            raise MemoryIndexError(f"document {name!r}: its text has more than 2 GiB")
        fields: dict[str, Any] = {
            "id": _utf8(documents.ids[row], "id", name),
            "document_id": _utf8(documents.document_ids[row], "document_id", name),
            "title": None if title is None else _utf8(title, "title", name),
            "text": text,
            "tokens": int(tokens),
            "vectors": int(documents.counts[row]),
            "text_bytes": len(text),
            "sequence": tag + row if "sequence" in columns else None,
            **body(row, text),
        }
        for column, values in columns.items():
            if column != "row_digest":
                values.append(fields[column])
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


def _row_digests(header: Header, columns: dict[str, list[Any]]) -> Iterator[bytes]:
    """The digest of each row, from the other small columns."""
    newest = header.format_version >= 3
    digests: list[Iterable[bytes | None]] = [columns[name] for name in header.digest_columns]
    if newest and header.mean_bytes is None:
        digests.insert(2, repeat(None))
    fields = zip(
        columns["id"],
        columns["document_id"],
        columns["title"],
        *(map(number, columns[name]) for name in ("tokens", *header.size_columns)),
        *digests,
    )
    label = b"clara.row.3" if newest else b"clara.row"
    sequences = columns.get("sequence") or repeat(None)
    for row, sequence in zip(fields, sequences):
        order = None if sequence is None else number(sequence)
        yield small_digest(label, row if order is None and not newest else (*row, order))


def _utf8(value: str, field: str, name: str) -> bytes:
    if flaw := surrogate_flaw(value):
        raise MemoryIndexError(f"document {name!r}: {field} {flaw}")
    return value.encode()


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    """A column of numbers, digests, or strings that are UTF-8 already."""
    if field.type == pa.large_string():
        return pa.array(values, pa.large_binary()).cast(field.type)
    return pa.array(values, field.type)
