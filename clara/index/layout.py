"""The layout of a compressed document in a row of a Lance dataset, in the format of its header.

`clara.index.columns` describes the columns, `clara.index.heads` the checksums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from torch import Tensor

from clara.index.arrays import values_of
from clara.index.details import Details, RowDetails, decode_details, encode_details
from clara.index.digests import digest
from clara.index.fixed_rows import decode_fixed, encode_fixed
from clara.index.header import Header
from clara.index.heads import Heads, damaged, decode_heads
from clara.index.ragged_rows import decode_memory, decode_vectors, encode_ragged
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory


def encode(
    header: Header,
    documents: CompressedDocuments,
    details: Mapping[str, Details] | None = None,
    means: Tensor | None = None,
) -> pa.RecordBatch:
    """Rows to store.

    Args:
        details: by the id of the document, see `clara.index.details`.
        means: see `MemoryIndex.upsert`.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    beside = encode_details(header, documents, details)
    if header.storage is None:
        return encode_fixed(header, documents)
    return encode_ragged(header, documents, beside, means)


def decode(
    header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str
) -> CompressedDocuments:
    """Check and read documents, from `Header.all_columns`.

    Args:
        rows: where in the dataset the batch is from, for messages.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    return _documents(header, batch, decode_heads(header, batch, rows, path), rows, path)


def decode_with_details(
    header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str
) -> tuple[CompressedDocuments, list[RowDetails | None]]:
    """Check and read documents and what is stored beside them, from `Header.hit_columns`.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    heads = decode_heads(header, batch, rows, path)
    documents = _documents(header, batch, heads, rows, path)
    if header.columns is None:
        return documents, [None] * len(documents)
    return documents, [*decode_details(header, batch, heads, rows, path)]


def _documents(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> CompressedDocuments:
    memory = _memory(header, batch, heads, rows, path)
    texts = _texts(header, batch, heads, rows, path)
    return CompressedDocuments(
        memory=memory.rows,
        counts=memory.counts,
        ids=heads.ids,
        document_ids=heads.document_ids,
        token_counts=heads.token_counts,
        texts=texts,
        titles=heads.titles,
        fingerprint=header.fingerprint,
    )


def decode_ranked(
    header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str
) -> tuple[Tensor, Tensor | None]:
    """Check and read the vectors that documents are ranked by, from `Header.vector_columns`.

    Returns:
        `[rows, header.vector_width]` in `header.vector_dtype`, and the scales `[rows]` of int8.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    heads = decode_heads(header, batch, rows, path)
    if header.storage is not None:
        return decode_vectors(header, batch, heads, rows, path)
    memory = _memory(header, batch, heads, rows, path)
    return memory.vectors(header.ranking_rule).to(header.vector_dtype), None


def check_memory(header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str) -> None:
    """Check memory alone, from the small columns and `Header.memory_columns`.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    _memory(header, batch, decode_heads(header, batch, rows, path), rows, path)


class StoredText(NamedTuple):
    """The text that a row's memory was made from."""

    id: str
    document_id: str
    title: str | None
    text: str


def decode_texts(
    header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str
) -> list[StoredText]:
    """Read the small columns and the texts. In formats 1 and 2 the checksum of a text needs the
    memory, so it is not verified.

    Raises:
        MemoryIndexError: a row is not what was written, or its text is not UTF-8; names it.
    """
    heads = decode_heads(header, batch, rows, path)
    texts = _texts(header, batch, heads, rows, path)
    found = zip(heads.ids, heads.document_ids, heads.titles, texts, strict=True)
    return [StoredText(*each) for each in found]


class RowEntry(NamedTuple):
    """A row without text and memory.

    Attributes:
        tokens: document tokens read.
        vectors: memory tokens written.
        details: None in an index without columns for metadata.
    """

    id: str
    document_id: str
    title: str | None
    tokens: int
    vectors: int
    details: RowDetails | None


def decode_entries(
    header: Header, batch: pa.RecordBatch, rows: Sequence[int], path: str
) -> list[RowEntry]:
    """Check and read rows without text and memory, from `Header.entry_columns`.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    heads = decode_heads(header, batch, rows, path)
    details: Sequence[RowDetails | None] = [None] * len(heads.ids)
    if header.columns is not None:
        details = decode_details(header, batch, heads, rows, path)
    fields = heads.ids, heads.document_ids, heads.titles, heads.token_counts, heads.counts
    return [RowEntry(*each) for each in zip(*fields, details, strict=True)]


def _memory(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> PaddedMemory:
    return (decode_fixed if header.storage is None else decode_memory)(
        header, batch, heads, rows, path
    )


def _texts(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> list[str]:
    found = []
    digests = heads.digests.get("text_digest")
    for place, text in enumerate(values_of(batch.column("text"))):
        intact = text is not None
        if intact and digests is not None:
            intact = digest(b"clara.row.text", text) == digests[place]
        try:
            decoded = text.decode() if intact else None
        except UnicodeDecodeError:
            decoded = None
        if decoded is None:
            raise damaged(path, heads.ids[place].encode(), rows[place])
        found.append(decoded)
    return found
