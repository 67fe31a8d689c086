"""The columns of an index in each format, as Arrow and Lance know them.

In format 3 the memory of a row is bytes: its memory vectors one after the other, as many as
`vectors` says, each `Storage.vector_bytes` long. `scales` holds the float32 scales of quantized
vectors in the same order, `mean` the mean of the memory vectors as they were given. Strings and
memory are not compressed: there is little to gain, and the size of an index is known beforehand,
see `clara.index.sizing`.

In formats 1 and 2 `memory` is a list of `m * H` values of fixed length, with zeros behind the
memory of a document that has fewer memory tokens (how many follows from `tokens` and the rate in
the settings). bfloat16, which Arrow does not have, is stored as its bits in uint16.

An index of format 3 that was made with columns for metadata has those of `detail_columns`, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import category

import pyarrow as pa

from clara.errors import shortened
from clara.errors.checks import surrogate_flaw
from clara.index.digests import DIGEST_BYTES

PRIMARY_KEY = {b"lance-schema:unenforced-primary-key": b"true"}

_PLAIN = {b"lance-encoding:compression": b"none"}
# Nor are strings that come often replaced by their numbers in a dictionary.
_EACH = {**_PLAIN, b"lance-encoding:dict-divisor": b"1000000"}
_DIGEST = pa.binary(DIGEST_BYTES)

RESERVED = (
    *("id", "document_id", "title", "text", "tokens", "source", "offset", "place"),
    *("contents", "marks"),  # in JSON lines that an index is exported to
)
"""Names that columns of metadata cannot have: they say something else of a document."""

_MOST_COLUMNS = 256
_LONGEST_NAME = 128  # characters
_SHOWN = 80

_CARRIERS = {
    "str": pa.large_string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}
KINDS = tuple(_CARRIERS)
"""Types of metadata, by the name of Python's type."""


def fixed_columns(value: pa.DataType, width: int, *, ordered: bool) -> list[pa.Field]:
    """The columns of formats 1 and 2.

    Args:
        value: what carries a value of memory.
        width: values of a document, `m * H`.
        ordered: with `sequence` and a primary key, as in format 2.
    """
    fields = [
        pa.field(
            "id", pa.large_string(), nullable=False, metadata=PRIMARY_KEY if ordered else None
        ),
        pa.field("document_id", pa.large_string(), nullable=False),
        pa.field("title", pa.large_string()),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("memory", pa.list_(value, width), nullable=False, metadata=_PLAIN),
        pa.field("body_digest", _DIGEST, nullable=False),
        pa.field("row_digest", _DIGEST, nullable=False),
    ]
    return [*fields, pa.field("sequence", pa.int64())] if ordered else fields


def ragged_columns(*, scales: bool, mean_bytes: int | None) -> list[pa.Field]:
    """The columns of format 3.

    Args:
        scales: memory is quantized.
        mean_bytes: bytes of a mean; None where documents are ranked by all memory tokens.
    """

    def stored(name: str, kind: pa.DataType) -> pa.Field:
        metadata = {**_PLAIN, **(PRIMARY_KEY if name == "id" else {})}
        return pa.field(name, kind, nullable=name == "title", metadata=metadata)

    fields = [
        stored("id", pa.large_string()),
        stored("document_id", pa.large_string()),
        stored("title", pa.large_string()),
        stored("text", pa.large_string()),
        stored("memory", pa.large_binary()),
    ]
    if scales:
        fields.append(stored("scales", pa.large_binary()))
    digests = ["text_digest", "memory_digest"]
    if mean_bytes is not None:
        fields.append(stored("mean", pa.binary(mean_bytes)))
        digests.append("mean_digest")
    fields += [
        pa.field(name, pa.int32(), nullable=False) for name in ("tokens", "vectors", "text_bytes")
    ]
    fields += [pa.field(name, _DIGEST, nullable=False) for name in (*digests, "row_digest")]
    return [*fields, pa.field("sequence", pa.int64())]


def detail_columns(kinds: Sequence[str], *, marks: bool) -> list[pa.Field]:
    """What format 3 stores beside the memory of a row in an index with columns for metadata.

    Lance does not take every name of a column, so metadata are numbered.

    Args:
        kinds: of the metadata, in the order of their columns.
        marks: see `Header.marks`.
    """
    fields = [
        pa.field("source", pa.large_string(), metadata=_EACH),
        pa.field("document_digest", pa.large_string(), metadata=_EACH),
        pa.field("offset", pa.int64(), nullable=False, metadata=_PLAIN),
        pa.field(marks_column(marks), pa.large_string(), metadata=_EACH),
    ]
    fields += [
        pa.field(metadata_column(number), _CARRIERS[kind], metadata=_EACH)
        for number, kind in enumerate(kinds)
    ]
    return [
        *fields,
        pa.field("details_bytes", pa.int32(), nullable=False, metadata=_PLAIN),
        pa.field("details_digest", _DIGEST, nullable=False),
    ]


def check_columns(columns: Sequence[tuple[str, str]]) -> None:
    """Refuse names and types that columns of metadata cannot have.

    Raises:
        ValueError: names the column and what would be accepted.
    """
    if len(columns) > _MOST_COLUMNS:
        raise ValueError(f"columns must be at most {_MOST_COLUMNS}, got {len(columns)}")
    seen = set()
    for name, kind in columns:
        shown = shortened(repr(name), _SHOWN)
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"the name of a column must have 1 to {_LONGEST_NAME} characters, got {shown}"
            )
        if surrogate_flaw(name) or any(category(each) == "Cc" for each in name):
            raise ValueError(f"column {shown} holds control characters or half a surrogate pair")
        if name in RESERVED:
            raise ValueError(
                f"column {shown} of metadata needs another name: {', '.join(RESERVED)} are taken"
            )
        if name in seen:
            raise ValueError(f"column {shown} is given twice")
        seen.add(name)
        if kind not in KINDS:
            raise ValueError(f"column {shown} must be one of {', '.join(KINDS)}, got {kind!r}")


def marks_column(marks: bool) -> str:
    """The column that says in which pages and headings a row's text lies, see `Header.marks`."""
    return "marks" if marks else "place"


def metadata_column(number: int) -> str:
    """What Lance calls a column of metadata."""
    return f"metadata_{number}"
