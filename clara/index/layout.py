"""The layout of a compressed document in a row of a Lance dataset: values, order, checksums.

`memory` is a list of `m * H` values of fixed length, with zeros behind the memory of a document
that has fewer memory tokens (how many follows from `tokens` and the rate in the settings);
bfloat16, which Arrow does not have, is stored as its bits in uint16. Lance keeps no checksums, so
every row has its own, in two steps:

    body_digest = blake2b(text, memory bytes)
    row_digest  = blake2b(id, document_id, title, tokens as int64, body_digest, sequence as int64)

so that the small columns can be read and checked without texts and memory. Both have 16 bytes and
are personalised "clara.body" and "clara.row". Numbers are little-endian. Each field is preceded by
its length in bytes as int64, and in place of an absent title stands the length -1: no two rows
give the same input. A row without a sequence ends with the body's digest.

Lance may write the rows of one commit in another order than they were given in. `sequence` keeps
that order: rows that were added together share its upper 32 bits, a random number, and its lower
32 bits count them. Format 1 does not have it, and upgraded rows are null in it: both lie in order.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import pad

from clara.errors.checks import surrogate_flaw
from clara.index.digests import digest, number
from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.memory.documents import CompressedDocuments

_MOST_TOKENS = 2**31 - 1
_TAG_BITS = 31  # and the sign bit stays 0


def encode(header: Header, documents: CompressedDocuments) -> pa.RecordBatch:
    """Rows to store.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    padding = header.memory_tokens - documents.memory.shape[1]
    memory = documents.memory.detach().to("cpu", header.dtype)
    memory = pad(memory, (0, 0, 0, padding))  # which cuts columns of padding if there are too many
    memory = memory.reshape(-1, header.width)
    _require_finite(header, documents, memory)
    carried = memory.contiguous().view(header.carrier).numpy()
    schema = header.schema
    tag = secrets.randbits(_TAG_BITS) << 32
    columns: dict[str, list[Any]] = {name: [] for name in schema.names if name != "memory"}
    for row, name in enumerate(documents.ids):
        tokens = documents.token_counts[row]
        if not 0 <= tokens <= _MOST_TOKENS:
            raise MemoryIndexError(f"document {name!r}: token count {tokens} is out of range")
        title = documents.titles[row]
        head = (
            _utf8(documents.ids[row], "id", name),
            _utf8(documents.document_ids[row], "document_id", name),
            None if title is None else _utf8(title, "title", name),
        )
        text = _utf8(documents.texts[row], "text", name)
        body_digest = digest(b"clara.body", text, carried[row])
        sequence = tag + row if "sequence" in columns else None
        fields = {
            **dict(zip(("id", "document_id", "title"), head)),
            "text": text,
            "tokens": int(tokens),
            "body_digest": body_digest,
            "row_digest": _row_digest(*head, tokens, body_digest, sequence),
            "sequence": sequence,
        }
        for column, values in columns.items():
            values.append(fields[column])
    arrays = {column: _array(values, schema.field(column)) for column, values in columns.items()}
    arrays["memory"] = pa.FixedSizeListArray.from_arrays(
        pa.array(carried.reshape(-1)), type=schema.field("memory").type
    )
    return pa.record_batch([arrays[column] for column in schema.names], schema=schema)


@dataclass(frozen=True)
class Heads:
    """The small columns of some rows, checked."""

    ids: list[str]
    document_ids: list[str]
    titles: list[str | None]
    token_counts: list[int]
    body_digests: list[bytes]
    sequences: list[int | None]


def decode_heads(batch: pa.RecordBatch, rows: Sequence[int], path: str) -> Heads:
    """Check and read the small columns, `Header.head_columns`.

    Args:
        rows: where in the dataset the batch is from, for messages.

    Raises:
        MemoryIndexError: a row is not what was written; names it.
    """
    ids, document_ids, titles = (
        _bytes(batch.column(name)) for name in ("id", "document_id", "title")
    )
    tokens, body_digests, row_digests = (
        batch.column(name).to_pylist() for name in ("tokens", "body_digest", "row_digest")
    )
    ordered = "sequence" in batch.schema.names
    sequences = batch.column("sequence").to_pylist() if ordered else [None] * batch.num_rows
    for row, (count, body_digest) in enumerate(zip(tokens, body_digests)):
        head = (ids[row], document_ids[row], titles[row])
        if (
            None in (ids[row], document_ids[row], count, body_digest)
            or _row_digest(*head, count, body_digest, sequences[row]) != row_digests[row]
        ):
            raise damaged(path, ids[row], rows[row])
    return Heads(
        ids=[value.decode() for value in ids],
        document_ids=[value.decode() for value in document_ids],
        titles=[None if value is None else value.decode() for value in titles],
        token_counts=tokens,
        body_digests=body_digests,
        sequences=sequences,
    )


def decode(
    header: Header,
    batch: pa.RecordBatch,
    rows: Sequence[int],
    path: str,
    out: Tensor | None = None,
) -> CompressedDocuments:
    """Check and read all columns.

    Args:
        out: where the memory goes, `[rows, m * H]`, contiguous; a new tensor by default.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    heads = decode_heads(batch, rows, path)
    texts = _bytes(batch.column("text"))
    carried = batch.column("memory").flatten().to_numpy()
    if out is None:
        out = torch.empty(len(heads.ids), header.width, dtype=header.dtype)
    if carried.size != out.numel():
        raise damaged(path, heads.ids[0].encode(), rows[0])
    target = out.view(header.carrier).numpy()
    target[...] = carried.reshape(target.shape)
    for row, text in enumerate(texts):
        # Of the copy, which is what will be used.
        if text is None or digest(b"clara.body", text, target[row]) != heads.body_digests[row]:
            raise damaged(path, heads.ids[row].encode(), rows[row])
    return CompressedDocuments(
        memory=out.view(-1, header.memory_tokens, header.hidden_size),
        counts=header.counts(heads.token_counts),
        ids=heads.ids,
        document_ids=heads.document_ids,
        token_counts=heads.token_counts,
        texts=[text.decode() for text in texts],
        titles=heads.titles,
        fingerprint=header.fingerprint,
    )


class StoredText(NamedTuple):
    """The text that a row's memory was made from."""

    id: str
    document_id: str
    title: str | None
    text: str


def decode_texts(batch: pa.RecordBatch, rows: Sequence[int], path: str) -> list[StoredText]:
    """Read the small columns and the texts; a text's checksum needs the memory, so it is not
    verified.

    Raises:
        MemoryIndexError: a row is not what was written, or its text is not UTF-8; names it.
    """
    heads = decode_heads(batch, rows, path)
    found = []
    for place, text in enumerate(_bytes(batch.column("text"))):
        name = heads.ids[place]
        try:
            decoded = text.decode()
        except (AttributeError, UnicodeDecodeError):
            raise damaged(path, name.encode(), rows[place]) from None
        found.append(StoredText(name, heads.document_ids[place], heads.titles[place], decoded))
    return found


def damaged(path: str, name: bytes | None, row: int) -> MemoryIndexError:
    """The error for a document that is not what was written."""
    shown = "without an id" if name is None else repr(name.decode(errors="replace"))
    return MemoryIndexError(
        f"{path}: document {shown} (row {row}) is damaged: not what was written, by its checksum"
    )


def _require_finite(header: Header, documents: CompressedDocuments, memory: Tensor) -> None:
    finite = memory.isfinite().all(1)
    if not finite.all():
        name = documents.ids[int(finite.logical_not().nonzero()[0])]
        raise MemoryIndexError(
            f"document {name!r}: memory holds values that are not finite in {header.dtype_name}"
        )


def _utf8(value: str, field: str, name: str) -> bytes:
    if flaw := surrogate_flaw(value):
        raise MemoryIndexError(f"document {name!r}: {field} {flaw}")
    return value.encode()


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    """A column of numbers, digests, or strings that are UTF-8 already."""
    if field.type == pa.large_string():
        return pa.array(values, pa.large_binary()).cast(field.type)
    return pa.array(values, field.type)


def _bytes(column: pa.Array) -> list[Any]:
    """Strings as bytes, so that invalid UTF-8 gets as far as the checksum."""
    return column.view(pa.large_binary()).to_pylist()


def _row_digest(
    name: bytes,
    document_id: bytes,
    title: bytes | None,
    tokens: int,
    body_digest: bytes,
    sequence: int | None,
) -> bytes:
    order = [] if sequence is None else [number(sequence)]
    return digest(b"clara.row", name, document_id, title, number(tokens), body_digest, *order)
