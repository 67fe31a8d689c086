"""The header of an index: settings of all rows, columns and format version.

The header is JSON in the schema's metadata, with its own digest beside it. Two formats are read:

- 1: written by 0.1.0. Rows are appended under a lock of the folder.
- 2: the index has an identity of its own, `id` is Lance's unenforced primary key, and the column
  `sequence` keeps the order in which documents were added, see `clara.index.layout`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from clara.config import RankingRule
from clara.errors.checks import is_integer
from clara.index.digests import DIGEST_BYTES, digest
from clara.index.errors import MemoryIndexError
from clara.memory.space import MemorySpace

FORMAT_VERSION = 2
"""The format of new indexes, and the newest that is read."""

_HEADER_KEY = b"clara.memory_index"
_DIGEST_KEY = b"clara.memory_index.digest"
_PRIMARY_KEY = {b"lance-schema:unenforced-primary-key": b"true"}
_HEAD_COLUMNS = ("id", "document_id", "title", "tokens", "body_digest", "row_digest")

# dtype: its name, the Arrow type and the torch dtype that carry its bits.
_CARRIERS = {
    torch.float32: ("float32", pa.float32(), torch.float32),
    torch.float16: ("float16", pa.float16(), torch.float16),
    torch.bfloat16: ("bfloat16", pa.uint16(), torch.uint16),
}
_DTYPES = {name: dtype for dtype, (name, _, _) in _CARRIERS.items()}


@dataclass(frozen=True)
class Header:
    """What all documents of an index have in common; validated on construction.

    Attributes:
        memory_tokens: m; in memory form "spans" the most that a document may have.
        settings: as `MemoryIndex.create` got them. "memory_form", "compression_rate" and "ranking"
            among them say what the memory is.
        identity: tells this index from every other one, also from one that was built anew at the
            same path; None in format 1, which has none.
    """

    fingerprint: str
    memory_tokens: int
    hidden_size: int
    dtype: torch.dtype
    settings: dict[str, Any]
    identity: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise ValueError(
                f"fingerprint must be a string that is not empty, got {self.fingerprint!r}"
            )
        for name in ("memory_tokens", "hidden_size"):
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
            object.__setattr__(self, name, int(value))  # numpy's integers are not JSON
        if isinstance(self.dtype, str) and self.dtype in _DTYPES:
            object.__setattr__(self, "dtype", _DTYPES[self.dtype])
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
        if self.identity is not None and not (isinstance(self.identity, str) and self.identity):
            raise ValueError(f"identity must be a string that is not empty, got {self.identity!r}")
        rate = self.span_rate
        if rate is not None and (not is_integer(rate) or rate < 1):
            raise ValueError(f"settings.compression_rate must be a positive integer, got {rate!r}")

    @property
    def span_rate(self) -> int | None:
        """Tokens per memory token in memory form "spans"; None where all documents have
        `memory_tokens`.
        """
        if self.settings.get("memory_form") != "spans":
            return None
        rate: int = self.settings.get("compression_rate", 0)
        return rate

    @property
    def ranking_rule(self) -> RankingRule:
        """How documents are ranked, see `ClaraConfig.ranking`."""
        return "mean" if self.settings.get("ranking") == "mean" else "flattened"

    def counts(self, token_counts: Sequence[int]) -> list[int]:
        """Memory tokens of documents of so many tokens."""
        rate = self.span_rate
        if rate is None:
            return [self.memory_tokens] * len(token_counts)
        return [max(1, -(-tokens // rate)) for tokens in token_counts]

    @property
    def format_version(self) -> int:
        return 1 if self.identity is None else 2

    @property
    def dtype_name(self) -> str:
        return _CARRIERS[self.dtype][0]

    @property
    def carrier(self) -> torch.dtype:
        """The torch dtype that numpy and Arrow can hold, of the same width as `dtype`."""
        return _CARRIERS[self.dtype][2]

    @property
    def width(self) -> int:
        """Values stored per document, `m * H`."""
        return self.memory_tokens * self.hidden_size

    @property
    def memory_space(self) -> MemorySpace:
        """What all memory in the index has in common."""
        m = self.memory_tokens if self.span_rate is None else None
        return MemorySpace(self.fingerprint, m, self.hidden_size, self.dtype)

    @property
    def vector_width(self) -> int:
        """Values of the vector that a document is ranked by."""
        return self.hidden_size if self.ranking_rule == "mean" else self.width

    @property
    def row_bytes(self) -> int:
        """Bytes of one document's memory."""
        return self.width * self.dtype.itemsize

    @property
    def head_columns(self) -> list[str]:
        """The small columns: all but text and memory."""
        return [*_HEAD_COLUMNS, *(["sequence"] if self.format_version >= 2 else [])]

    @property
    def all_columns(self) -> list[str]:
        return [*self.head_columns, "text", "memory"]

    @property
    def schema(self) -> pa.Schema:
        """The columns, with this header in the metadata."""
        plain = {"lance-encoding:compression": "none"}  # nothing to gain on hidden states
        value = _CARRIERS[self.dtype][1]
        key = _PRIMARY_KEY if self.format_version >= 2 else None
        fields = [
            pa.field("id", pa.large_string(), nullable=False, metadata=key),
            pa.field("document_id", pa.large_string(), nullable=False),
            pa.field("title", pa.large_string()),
            pa.field("text", pa.large_string(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("memory", pa.list_(value, self.width), nullable=False, metadata=plain),
            pa.field("body_digest", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field("row_digest", pa.binary(DIGEST_BYTES), nullable=False),
        ]
        if self.format_version >= 2:
            fields.append(pa.field("sequence", pa.int64()))
        return pa.schema(fields, metadata=self.metadata)

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """The header as it is stored, with its digest."""
        fields = {
            "format_version": self.format_version,
            "fingerprint": self.fingerprint,
            "memory_tokens": self.memory_tokens,
            "hidden_size": self.hidden_size,
            "dtype": self.dtype_name,
            "settings": self.settings,
        }
        if self.identity is not None:
            fields["identity"] = self.identity
        text = json.dumps(fields, sort_keys=True).encode()
        return {_HEADER_KEY: text, _DIGEST_KEY: digest(b"clara.header", text).hex().encode()}

    def is_like(self, other: Header) -> bool:
        """Whether two indexes hold memory of the same kind: all is equal but the identity."""
        return replace(self, identity=None) == replace(other, identity=None)

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
            intact = metadata.get(_DIGEST_KEY) == digest(b"clara.header", text).hex().encode()
            header = cls(
                fingerprint=fields["fingerprint"],
                memory_tokens=fields["memory_tokens"],
                hidden_size=fields["hidden_size"],
                dtype=_DTYPES[fields["dtype"]],
                settings=fields["settings"],
                identity=fields.get("identity"),
            )
        except MemoryIndexError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise MemoryIndexError(f"{path}: the header of the index is damaged") from error
        if not intact or version != header.format_version:
            raise MemoryIndexError(f"{path}: the header of the index is damaged")
        if not schema.equals(header.schema, check_metadata=False):
            raise MemoryIndexError(f"{path}: the columns do not fit the header of the index")
        declared = schema.field("id").metadata or {}
        if header.format_version >= 2 and not _PRIMARY_KEY.items() <= declared.items():
            raise MemoryIndexError(f"{path}: the columns do not fit the header of the index")
        return header
