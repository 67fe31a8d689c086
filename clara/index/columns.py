"""The columns of an index in each format, as Arrow and Lance know them.

In format 3 the memory of a row is bytes: its memory vectors one after the other, as many as
`vectors` says, each `Storage.vector_bytes` long. `scales` holds the float32 scales of quantized
vectors in the same order, `mean` the mean of the memory vectors as they were given. Strings and
memory are not compressed: there is little to gain, and the size of an index is known beforehand,
see `clara.index.sizing`.

In formats 1 and 2 `memory` is a list of `m * H` values of fixed length, with zeros behind the
memory of a document that has fewer memory tokens (how many follows from `tokens` and the rate in
the settings). bfloat16, which Arrow does not have, is stored as its bits in uint16.
"""

from __future__ import annotations

import pyarrow as pa

from clara.index.digests import DIGEST_BYTES

PRIMARY_KEY = {b"lance-schema:unenforced-primary-key": b"true"}

_PLAIN = {b"lance-encoding:compression": b"none"}
_DIGEST = pa.binary(DIGEST_BYTES)


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
