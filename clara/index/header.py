"""The header of an index: settings of all rows, columns and format version.

The header is JSON in the schema's metadata, with its own digest beside it. Three formats are read
and added to, the last is written anew:

- 1: written by 0.1.0. Rows are appended under a lock of the folder.
- 2: the index has an identity of its own, `id` is Lance's unenforced primary key, and the column
  `sequence` keeps the order in which documents were added, see `clara.index.heads`.
- 3: every row has its own number of memory vectors, which may be quantized, and the mean of them
  beside it where documents are ranked by it, see `clara.index.columns`. It may have columns for
  metadata, whose names and types are in the header, see `clara.index.details`.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from clara.config import RankingRule
from clara.errors.checks import is_integer
from clara.index.columns import (
    PRIMARY_KEY,
    check_columns,
    detail_columns,
    fixed_columns,
    marks_column,
    metadata_column,
    ragged_columns,
)
from clara.index.digests import digest
from clara.index.errors import MemoryIndexError
from clara.index.storage import STORAGES, Storage
from clara.memory.space import MemorySpace

FORMAT_VERSION = 3
"""The format of new indexes, and the newest that is read."""

_HEADER_KEY = b"clara.memory_index"
_DIGEST_KEY = b"clara.memory_index.digest"
_NAMES = ("id", "document_id", "title", "tokens")

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
        dtype: in which memory is read; in formats 1 and 2 it is stored in it, too.
        identity: tells this index from every other one, also from one that was built anew at the
            same path; None in format 1, which has none.
        storage: how values are stored, see `clara.index.storage`; None in formats 1 and 2. A
            floating-point storage is the dtype as well.
        columns: of metadata, name and type of each, see `clara.index.columns.KINDS`; None: the
            index has no such columns, and none for where documents are from.
        marks: rows have all pages and headings in their texts. The first indexes with columns have
            only those that rows begin in.
    """

    fingerprint: str
    memory_tokens: int
    hidden_size: int
    dtype: torch.dtype
    settings: dict[str, Any]
    identity: str | None = None
    storage: str | None = None
    columns: tuple[tuple[str, str], ...] | None = None
    marks: bool = False

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
        if self.storage is not None and self.storage not in tuple(STORAGES):
            raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {self.storage!r}")
        if self.storage in tuple(_DTYPES):
            object.__setattr__(self, "dtype", self.storage)
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
        if self.columns is not None:
            if self.storage is None:
                raise ValueError("columns must be None in formats 1 and 2")
            check_columns(self.columns)
        if not isinstance(self.marks, bool) or (self.marks and self.columns is None):
            raise ValueError(f"marks must be False without columns, got {self.marks!r}")

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
        if self.storage is not None:
            return 3
        return 1 if self.identity is None else 2

    @property
    def dtype_name(self) -> str:
        return _CARRIERS[self.dtype][0]

    @property
    def storage_name(self) -> str:
        """How values are stored, in any format."""
        return self.storage or self.dtype_name

    @property
    def stored_as(self) -> Storage:
        return STORAGES[self.storage_name]

    @property
    def carrier(self) -> torch.dtype:
        """The torch dtype that numpy and Arrow can hold, of the same width as `dtype`."""
        return _CARRIERS[self.dtype][2]

    @property
    def width(self) -> int:
        """Values of a document with all its memory tokens, `m * H`."""
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
    def vector_dtype(self) -> torch.dtype:
        """The dtype of the vectors that documents are ranked by, as a search reads them.

        int8 codes are searched as they are where a vector has one scale.
        """
        if self.ranking_rule == "mean":
            return torch.float32 if self.storage is None else self.stored_as.mean_dtype
        return torch.int8 if self.ranks_codes else self.dtype

    @property
    def ranks_codes(self) -> bool:
        """Whether the vectors that documents are ranked by are int8 codes with one scale each."""
        single = self.ranking_rule == "flattened" and self.memory_tokens == 1
        return single and self.storage == "int8"

    @property
    def mean_bytes(self) -> int | None:
        """Bytes of the mean that is stored with a row; None if none is."""
        if self.storage is None or self.ranking_rule != "mean":
            return None
        return self.hidden_size * self.stored_as.mean_dtype.itemsize

    @property
    def digest_columns(self) -> list[str]:
        """Checksums of what lies beside the small columns, in the order that they are hashed in."""
        if self.storage is None:
            return ["body_digest"]
        mean = [] if self.mean_bytes is None else ["mean_digest"]
        details = [] if self.columns is None else ["details_digest"]
        return ["text_digest", "memory_digest", *mean, *details]

    @property
    def head_columns(self) -> list[str]:
        """The small columns: all but text and memory."""
        ordered = ["sequence"] if self.format_version >= 2 else []
        return [*_NAMES, *self.size_columns, *self.digest_columns, "row_digest", *ordered]

    @property
    def size_columns(self) -> list[str]:
        """Small columns with numbers, beside that of tokens."""
        details = [] if self.columns is None else ["details_bytes"]
        return [] if self.storage is None else ["vectors", "text_bytes", *details]

    @property
    def detail_columns(self) -> list[str]:
        """What `clara.index.details` reads beside the small columns."""
        names = [metadata_column(number) for number in range(len(self.columns or ()))]
        return ["source", "document_digest", "offset", marks_column(self.marks), *names]

    @property
    def entry_columns(self) -> list[str]:
        """All but text and memory."""
        return [*self.head_columns, *([] if self.columns is None else self.detail_columns)]

    @property
    def memory_columns(self) -> list[str]:
        """What the memory of a row is read from, beside the small columns."""
        if self.storage is None:
            return ["text", "memory"]  # which share a checksum
        return ["memory", "scales"] if self.stored_as.dtype is None else ["memory"]

    @property
    def vector_columns(self) -> list[str]:
        """What a search reads of all rows."""
        of_vectors = self.memory_columns if self.mean_bytes is None else ["mean"]
        return [*self.head_columns, *of_vectors]

    @property
    def all_columns(self) -> list[str]:
        """What a document is read from."""
        return [*self.head_columns, *dict.fromkeys(["text", *self.memory_columns])]

    @property
    def hit_columns(self) -> list[str]:
        """What a hit of a search is read from."""
        return [*self.all_columns, *([] if self.columns is None else self.detail_columns)]

    @property
    def schema(self) -> pa.Schema:
        """The columns, with this header in the metadata."""
        if self.storage is not None:
            scales = self.stored_as.dtype is None
            fields = ragged_columns(scales=scales, mean_bytes=self.mean_bytes)
            if self.columns is not None:
                fields += detail_columns([kind for _, kind in self.columns], marks=self.marks)
        else:
            value = _CARRIERS[self.dtype][1]
            fields = fixed_columns(value, self.width, ordered=self.format_version >= 2)
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
        for name in ("identity", "storage", "columns"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        if self.marks:
            fields["marks"] = True
        text = json.dumps(fields, sort_keys=True).encode()
        return {_HEADER_KEY: text, _DIGEST_KEY: digest(b"clara.header", text).hex().encode()}

    def is_like(self, other: Header) -> bool:
        """Whether two indexes hold memory of the same kind, whatever their identity and format."""
        one, two = (
            replace(each, identity=None, storage=each.storage_name, marks=False)
            for each in (self, other)
        )
        return one == two

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
                storage=fields.get("storage"),
                columns=_as_columns(fields.get("columns")),
                marks=fields.get("marks", False),
            )
        except MemoryIndexError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise MemoryIndexError(f"{path}: the header of the index is damaged") from error
        nameless = header.storage is not None and header.identity is None
        if not intact or version != header.format_version or nameless:
            raise MemoryIndexError(f"{path}: the header of the index is damaged")
        if not schema.equals(header.schema, check_metadata=False):
            raise MemoryIndexError(f"{path}: the columns do not fit the header of the index")
        declared = schema.field("id").metadata or {}
        if header.format_version >= 2 and not PRIMARY_KEY.items() <= declared.items():
            raise MemoryIndexError(f"{path}: the columns do not fit the header of the index")
        return header


def _as_columns(stored: Any) -> tuple[tuple[str, str], ...] | None:
    """From JSON, which has lists."""
    return None if stored is None else tuple((name, kind) for name, kind in stored)


def new_header(
    *,
    fingerprint: str,
    memory_tokens: int,
    hidden_size: int,
    dtype: torch.dtype = torch.float32,
    storage: str | None = None,
    settings: dict[str, Any] | None = None,
    columns: tuple[tuple[str, str], ...] | None = None,
) -> Header:
    """The header of a new index in the newest format, with an identity of its own.

    Raises:
        ValueError, TypeError: an argument is not as `MemoryIndex.create` says.
    """
    header = Header(
        fingerprint,
        memory_tokens,
        hidden_size,
        dtype,
        copy.deepcopy({} if settings is None else settings),
        identity=uuid.uuid4().hex,
    )
    storage = header.dtype_name if storage is None else storage
    return replace(header, storage=storage, columns=columns, marks=columns is not None)
