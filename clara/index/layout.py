"""How compressed documents lie in a Lance dataset: header, columns, checksums.

A row is one compressed document. `memory` is a list of `m * H` values of fixed length; bfloat16,
which Arrow does not have, is stored as its bits in uint16. Lance keeps no checksums, so every row
has its own, in two steps:

    body_digest = blake2b(text, memory bytes)
    row_digest  = blake2b(id, document_id, title, tokens as int64, body_digest)

so that the small columns can be read and checked without texts and memory. Both have 16 bytes and
are personalised "clara.body" and "clara.row". Numbers are little-endian. Each field is preceded by
its length in bytes as int64, and in place of an absent title stands the length -1: no two rows
give the same input. The header is JSON in the schema's metadata, with its own digest beside it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from clara.documents import CompressedDocuments
from clara.index.errors import MemoryIndexError

FORMAT_VERSION = 1
HEAD_COLUMNS = ["id", "document_id", "title", "tokens", "body_digest", "row_digest"]
ALL_COLUMNS = [*HEAD_COLUMNS, "text", "memory"]

_HEADER_KEY = b"clara.memory_index"
_DIGEST_KEY = b"clara.memory_index.digest"
_DIGEST_BYTES = 16
_LENGTH = struct.Struct("<q")
_ABSENT = _LENGTH.pack(-1)
_MOST_TOKENS = 2**31 - 1

# dtype: its name, the Arrow type and the torch dtype that carry its bits.
_CARRIERS = {
    torch.float32: ("float32", pa.float32(), torch.float32),
    torch.float16: ("float16", pa.float16(), torch.float16),
    torch.bfloat16: ("bfloat16", pa.uint16(), torch.uint16),
}
_DTYPES = {name: dtype for dtype, (name, _, _) in _CARRIERS.items()}


@dataclass(frozen=True)
class Header:
    """What all documents of an index have in common; validated on construction."""

    fingerprint: str
    memory_tokens: int
    hidden_size: int
    dtype: torch.dtype
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise ValueError(
                f"fingerprint must be a string that is not empty, got {self.fingerprint!r}"
            )
        for name in ("memory_tokens", "hidden_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.dtype not in _CARRIERS:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype}")
        if not isinstance(self.settings, dict):
            raise TypeError(f"settings must be a dict, got {type(self.settings).__name__}")
        try:
            same = json.loads(json.dumps(self.settings, allow_nan=False)) == self.settings
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"settings cannot be written as JSON: {error}") from error
        if not same:
            raise ValueError("settings must read back from JSON unchanged: string keys, no tuples")

    @property
    def dtype_name(self) -> str:
        return _CARRIERS[self.dtype][0]

    @property
    def carrier(self) -> torch.dtype:
        """The torch dtype that numpy and Arrow can hold, of the same width as `dtype`."""
        return _CARRIERS[self.dtype][2]

    @property
    def width(self) -> int:
        """Values per document, `m * H`."""
        return self.memory_tokens * self.hidden_size

    @property
    def row_bytes(self) -> int:
        """Bytes of one document's memory."""
        return self.width * self.dtype.itemsize

    @property
    def schema(self) -> pa.Schema:
        """The columns, with this header in the metadata."""
        plain = {"lance-encoding:compression": "none"}  # nothing to gain on hidden states
        value = _CARRIERS[self.dtype][1]
        digest = pa.binary(_DIGEST_BYTES)
        return pa.schema(
            [
                pa.field("id", pa.large_string(), nullable=False),
                pa.field("document_id", pa.large_string(), nullable=False),
                pa.field("title", pa.large_string()),
                pa.field("text", pa.large_string(), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("memory", pa.list_(value, self.width), nullable=False, metadata=plain),
                pa.field("body_digest", digest, nullable=False),
                pa.field("row_digest", digest, nullable=False),
            ],
            metadata=self._metadata(),
        )

    def _metadata(self) -> dict[bytes, bytes]:
        fields = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "memory_tokens": self.memory_tokens,
            "hidden_size": self.hidden_size,
            "dtype": self.dtype_name,
            "settings": self.settings,
        }
        text = json.dumps(fields, sort_keys=True).encode()
        return {_HEADER_KEY: text, _DIGEST_KEY: _digest(b"clara.header", text).hex().encode()}

    @classmethod
    def from_schema(cls, schema: pa.Schema, path: str) -> Header:
        """The header of a stored dataset.

        Raises:
            MemoryIndexError: the dataset is not an index, of a newer version, or damaged.
        """
        metadata = schema.metadata or {}
        text = metadata.get(_HEADER_KEY)
        if text is None:
            raise MemoryIndexError(f"{path}: a Lance dataset, but not an index of clara")
        try:
            fields = json.loads(text)
            version = fields["format_version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise MemoryIndexError(
                    f"{path}: format version {version} is newer than this release reads "
                    f"({FORMAT_VERSION}): upgrade clara-rag"
                )
            intact = metadata.get(_DIGEST_KEY) == _digest(b"clara.header", text).hex().encode()
            header = cls(
                fingerprint=fields["fingerprint"],
                memory_tokens=fields["memory_tokens"],
                hidden_size=fields["hidden_size"],
                dtype=_DTYPES[fields["dtype"]],
                settings=fields["settings"],
            )
        except MemoryIndexError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise MemoryIndexError(f"{path}: the header of the index is damaged") from error
        if not intact or version != FORMAT_VERSION:
            raise MemoryIndexError(f"{path}: the header of the index is damaged")
        if not schema.equals(header.schema, check_metadata=False):
            raise MemoryIndexError(f"{path}: the columns do not fit the header of the index")
        return header


def encode(header: Header, documents: CompressedDocuments) -> pa.RecordBatch:
    """Rows to store.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    memory = documents.memory.detach().to("cpu", header.dtype).reshape(-1, header.width)
    _require_finite(header, documents, memory)
    carried = memory.contiguous().view(header.carrier).numpy()
    schema = header.schema
    columns: dict[str, list[Any]] = {name: [] for name in HEAD_COLUMNS}
    texts = []
    for row, name in enumerate(documents.ids):
        tokens = documents.token_counts[row]
        if not 0 <= tokens <= _MOST_TOKENS:
            raise MemoryIndexError(f"document {name!r}: token count {tokens} is out of range")
        title = documents.titles[row]
        head = [
            _utf8(documents.ids[row], "id", name),
            _utf8(documents.document_ids[row], "document_id", name),
            None if title is None else _utf8(title, "title", name),
        ]
        text = _utf8(documents.texts[row], "text", name)
        body_digest = _digest(b"clara.body", text, carried[row])
        row_digest = _digest(b"clara.row", *head, _LENGTH.pack(tokens), body_digest)
        for column, value in zip(HEAD_COLUMNS, [*head, tokens, body_digest, row_digest]):
            columns[column].append(value)
        texts.append(text)
    values = pa.FixedSizeListArray.from_arrays(
        pa.array(carried.reshape(-1)), type=schema.field("memory").type
    )
    return pa.record_batch(
        [
            *(_strings(columns[name]) for name in ("id", "document_id", "title")),
            _strings(texts),
            pa.array(columns["tokens"], pa.int32()),
            values,
            pa.array(columns["body_digest"], pa.binary(_DIGEST_BYTES)),
            pa.array(columns["row_digest"], pa.binary(_DIGEST_BYTES)),
        ],
        schema=schema,
    )


@dataclass(frozen=True)
class Heads:
    """The small columns of some rows, checked."""

    ids: list[str]
    document_ids: list[str]
    titles: list[str | None]
    token_counts: list[int]
    body_digests: list[bytes]


def decode_heads(batch: pa.RecordBatch, rows: Sequence[int], path: str) -> Heads:
    """Check and read `HEAD_COLUMNS`.

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
    for row, (count, body_digest) in enumerate(zip(tokens, body_digests)):
        head = (ids[row], document_ids[row], titles[row])
        if (
            None in (ids[row], document_ids[row], count, body_digest)
            or _digest(b"clara.row", *head, _LENGTH.pack(count), body_digest) != row_digests[row]
        ):
            raise damaged(path, ids[row], rows[row])
    return Heads(
        ids=[value.decode() for value in ids],
        document_ids=[value.decode() for value in document_ids],
        titles=[None if value is None else value.decode() for value in titles],
        token_counts=tokens,
        body_digests=body_digests,
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
        if text is None or _digest(b"clara.body", text, target[row]) != heads.body_digests[row]:
            raise damaged(path, heads.ids[row].encode(), rows[row])
    return CompressedDocuments(
        memory=out.view(-1, header.memory_tokens, header.hidden_size),
        ids=heads.ids,
        document_ids=heads.document_ids,
        token_counts=heads.token_counts,
        texts=[text.decode() for text in texts],
        titles=heads.titles,
        fingerprint=header.fingerprint,
    )


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
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise MemoryIndexError(
            f"document {name!r}: {field} holds half a surrogate pair at character {error.start}"
        ) from error


def _strings(values: list[bytes | None] | list[bytes]) -> pa.Array:
    return pa.array(values, pa.large_binary()).cast(pa.large_string())


def _bytes(column: pa.Array) -> list[Any]:
    """Strings as bytes, so that invalid UTF-8 gets as far as the checksum."""
    return column.view(pa.large_binary()).to_pylist()


def _digest(label: bytes, *fields: Any) -> bytes:
    """Of bytes, contiguous arrays and None, each with its length in front."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=label)
    for field in fields:
        if field is None:
            state.update(_ABSENT)
        else:
            view = memoryview(field)
            state.update(_LENGTH.pack(view.nbytes))
            state.update(view)
    return state.digest()
