"""Memory in rows of format 3: bytes of as many memory vectors as each document has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from clara.index.arrays import values_of
from clara.index.details import EncodedDetails
from clara.index.digests import digest
from clara.index.errors import MemoryIndexError
from clara.index.fixed_rows import require_finite
from clara.index.header import Header
from clara.index.heads import Heads, damaged, encode_heads, record_batch
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory

Bytes = npt.NDArray[np.uint8]


def encode_ragged(
    header: Header,
    documents: CompressedDocuments,
    details: EncodedDetails | None,
    given_means: Tensor | None = None,
) -> pa.RecordBatch:
    """Rows to store. The padding of documents with fewer memory tokens is not looked at.

    Args:
        given_means: see `MemoryIndex.upsert`.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    counts = documents.counts
    if header.ranking_rule == "flattened":
        _require_equal(header, documents.ids, counts)
    lengths = np.array(counts, dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    vectors = _unpadded(documents.memory.detach().cpu(), lengths)
    stored = vectors.to(header.dtype)
    _require_finite(header, documents.ids, stored, ends)

    codes, scales = header.stored_as.pack(
        stored if header.stored_as.dtype == header.dtype else vectors
    )
    parts = {"memory": _Pieces(codes.numpy().reshape(-1), ends * codes.shape[1])}
    if scales is not None:
        as_bytes = scales.contiguous().view(torch.uint8)
        parts["scales"] = _Pieces(as_bytes.numpy().reshape(-1), ends * as_bytes.shape[1])
    means = None
    if header.mean_bytes is not None:
        means = _means(header, documents.ids, vectors, lengths, given_means)

    def beside(texts: list[bytes]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {
            "text_digest": [digest(b"clara.row.text", text) for text in texts],
            "memory_digest": _memory_digests(parts, len(texts)),
        }
        if means is not None:
            found["mean_digest"] = [digest(b"clara.mean", mean) for mean in _row_bytes(means)]
        if details is not None:
            found["details_digest"] = details.digests
            found["details_bytes"] = details.sizes
        return found

    columns = encode_heads(header, documents, beside)
    if details is not None:
        columns |= details.columns
    schema = header.schema
    arrays = {name: pieces.array() for name, pieces in parts.items()}
    if means is not None:
        buffers = [None, pa.py_buffer(means.reshape(-1))]
        arrays["mean"] = pa.Array.from_buffers(schema.field("mean").type, len(means), buffers)
    return record_batch(schema, columns, arrays)


def decode_memory(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> PaddedMemory:
    """Check and read the memory of rows.

    Returns:
        Memory in the header's dtype, as many memory tokens wide as the longest document of the
        batch; as wide as the longest that the index may hold if there is no document.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    codes, scales = _stored(header, batch, heads, rows, path)
    width = header.hidden_size
    vectors = header.stored_as.unpack(codes, scales, width, header.dtype)
    counts = np.array(heads.counts, dtype=np.int64)
    most = int(counts.max()) if len(counts) else header.memory_tokens
    if len(vectors) == most * len(counts):
        return PaddedMemory(vectors.view(len(counts), most, width), heads.counts)
    memory = torch.zeros(len(counts), most, width, dtype=header.dtype)
    memory[torch.from_numpy(np.arange(most) < counts[:, None])] = vectors
    return PaddedMemory(memory, heads.counts)


def decode_vectors(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> tuple[Tensor, Tensor | None]:
    """Check and read what rows are ranked by, from `Header.vector_columns`.

    Returns:
        `[rows, header.vector_width]` in `header.vector_dtype`, and the scales `[rows]` of int8.

    Raises:
        MemoryIndexError: a row is not what was written, or has another number of memory tokens
            than all others where documents are ranked by all of them; names its document.
    """
    if header.mean_bytes is not None:
        return _stored_means(header, batch, heads, rows, path), None
    _require_equal(header, heads.ids, heads.counts, path)
    if header.ranks_codes:
        codes, scales = _stored(header, batch, heads, rows, path)
        return codes.view(torch.int8), None if scales is None else scales[:, 0]
    return decode_memory(header, batch, heads, rows, path).rows.reshape(-1, header.width), None


class _Pieces(NamedTuple):
    """Bytes of rows, one after the other.

    Attributes:
        values: of all rows.
        ends: int64 `[rows + 1]`, row i is `values[ends[i]:ends[i + 1]]`.
    """

    values: Bytes
    ends: npt.NDArray[np.int64]

    def each(self) -> Iterator[memoryview]:
        """The bytes of each row."""
        whole, ends = self.values.data, self.ends.tolist()
        return (whole[begin:end] for begin, end in zip(ends, ends[1:]))

    def size(self, row: int) -> int:
        """How many bytes a row has."""
        return int(self.ends[row + 1] - self.ends[row])

    def array(self) -> pa.Array:
        buffers = [None, pa.py_buffer(self.ends.tobytes()), pa.py_buffer(self.values)]
        return pa.Array.from_buffers(pa.large_binary(), len(self.ends) - 1, buffers)

    @classmethod
    def of(cls, column: pa.Array) -> _Pieces:
        """A copy of a column, in memory that other types can lie over.

        Raises:
            pyarrow.ArrowInvalid: its offsets are not within its bytes.
        """
        column.validate(full=True)
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
        values = torch.empty(int(ends[-1] - ends[0]), dtype=torch.uint8).numpy()
        if data is not None:
            values[...] = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
        return cls(values, ends - ends[0])


def _stored(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> tuple[Tensor, Tensor | None]:
    """Codes `[S, vector_bytes]` and scales `[S, vector_scales]` of all memory vectors of rows."""
    storage, hidden_size = header.stored_as, header.hidden_size
    sizes = {"memory": storage.vector_bytes(hidden_size)}
    if storage.dtype is None:
        sizes["scales"] = storage.scale_bytes(hidden_size)
    parts = {name: _Pieces.of(batch.column(name)) for name in sizes} if len(rows) else {}
    # Of the copy, which is what will be used.
    found_digests = _memory_digests(parts, len(rows)) if parts else []
    for row, expected in enumerate(heads.digests["memory_digest"]):
        fits = all(parts[name].size(row) == heads.counts[row] * sizes[name] for name in sizes)
        if not fits or found_digests[row] != expected:
            raise damaged(path, heads.ids[row].encode(), rows[row])
    if not parts:
        parts = {name: _Pieces(np.empty(0, np.uint8), np.zeros(1, np.int64)) for name in sizes}
    found = {
        name: torch.from_numpy(pieces.values).view(-1, sizes[name])
        for name, pieces in parts.items()
    }
    scales = found["scales"].view(torch.float32) if "scales" in found else None
    return found["memory"], scales


def _stored_means(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> Tensor:
    out = torch.empty(len(heads.ids), header.hidden_size, dtype=header.vector_dtype)
    target = out.view(torch.uint8).numpy()
    for row, (value, expected) in enumerate(
        zip(values_of(batch.column("mean")), heads.digests["mean_digest"], strict=True)
    ):
        if value is None or digest(b"clara.mean", value) != expected:
            raise damaged(path, heads.ids[row].encode(), rows[row])
        target[row] = np.frombuffer(value, np.uint8)
    return out


def _means(
    header: Header,
    ids: Sequence[str],
    vectors: Tensor,
    counts: npt.NDArray[np.int64],
    given: Tensor | None,
) -> Bytes:
    """Means of memory vectors as they were given, `[rows, mean_bytes]`.

    Args:
        vectors: of all rows, one after the other; `counts` of each.

    Raises:
        MemoryIndexError: finite vectors have a mean that is not; no search could read it.
    """
    means = torch.empty(len(ids), header.hidden_size, dtype=header.vector_dtype)
    if given is not None:
        if given.shape != means.shape:
            raise ValueError(f"means must be {list(means.shape)}, got {list(given.shape)}")
        means.copy_(given)
    else:
        wide = torch.promote_types(vectors.dtype, torch.float32)
        begins = np.cumsum(counts) - counts
        for count in np.unique(counts).tolist():  # bit for bit what each row alone would give
            rows = np.flatnonzero(counts == count)
            places = torch.from_numpy(begins[rows][:, None] + np.arange(count))
            means[torch.from_numpy(rows)] = vectors[places].mean(1, dtype=wide).to(means.dtype)
    finite = means.isfinite().all(1)
    if not finite.all():
        name = ids[int(finite.logical_not().nonzero()[0])]
        raise MemoryIndexError(
            f"document {name!r}: the mean of its memory is not finite in "
            f"{str(means.dtype).removeprefix('torch.')}; its values are too large"
        )
    return means.view(torch.uint8).numpy()


def _unpadded(memory: Tensor, counts: npt.NDArray[np.int64]) -> Tensor:
    """A copy of the vectors of all rows, one after the other, `[S, H]`, without padding."""
    rows, most, hidden_size = memory.shape
    flat = memory.reshape(rows * most, hidden_size)
    if rows * most == int(counts.sum()):
        return flat.clone()
    chosen = np.flatnonzero(np.arange(most) < counts[:, None])
    return flat.index_select(0, torch.from_numpy(chosen))


def _require_finite(
    header: Header, ids: Sequence[str], vectors: Tensor, ends: npt.NDArray[np.int64]
) -> None:
    """Refuse memory with values that are not finite in the dtype it is read in."""
    # No sum is finite of values that are not. Large ones may have a sum that is not, either.
    if vectors.sum(dtype=torch.float32).isfinite():
        return
    finite = vectors.isfinite().all(1)
    whole = [bool(finite[begin:end].all()) for begin, end in zip(ends, ends[1:])]
    require_finite(header, ids, torch.tensor(whole, dtype=torch.bool))


def _row_bytes(values: Bytes) -> Iterator[memoryview]:
    """Each row of a matrix of bytes."""
    width = values.shape[1]
    flat = values.reshape(-1).data
    return (flat[begin : begin + width] for begin in range(0, len(values) * width, width))


def _memory_digests(parts: dict[str, _Pieces], count: int) -> list[bytes]:
    """The digest of the memory of each row."""
    memory = parts["memory"].each()
    scales = parts["scales"].each() if "scales" in parts else repeat(None, count)
    return [digest(b"clara.memory", *each) for each in zip(memory, scales, strict=True)]


def _require_equal(
    header: Header, ids: Sequence[str], counts: Sequence[int], path: str | None = None
) -> None:
    for name, count in zip(ids, counts, strict=True):
        if count != header.memory_tokens:
            raise MemoryIndexError(
                f"{'' if path is None else f'{path}: '}document {name!r} has {count} memory "
                f'tokens; an index with ranking "flattened" needs {header.memory_tokens} of each '
                'document, one with ranking "mean" takes any number'
            )
