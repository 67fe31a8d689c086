"""Memory in rows of format 3: bytes of as many memory vectors as each document has."""

from __future__ import annotations

from collections.abc import Sequence
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
    rows = documents.memory.detach().cpu()
    each = [memory[:count] for memory, count in zip(rows, counts, strict=True)]
    vectors = torch.cat([rows.new_empty(0, header.hidden_size), *each])
    finite = vectors.to(header.dtype).isfinite().all(1)
    ends = np.concatenate([[0], np.cumsum(np.array(counts, dtype=np.int64))])
    whole = [bool(finite[begin:end].all()) for begin, end in zip(ends, ends[1:])]
    require_finite(header, documents.ids, torch.tensor(whole, dtype=torch.bool))

    codes, scales = header.stored_as.pack(vectors)
    parts = {"memory": _Pieces(codes.numpy().reshape(-1), ends * codes.shape[1])}
    if scales is not None:
        as_bytes = scales.contiguous().view(torch.uint8)
        parts["scales"] = _Pieces(as_bytes.numpy().reshape(-1), ends * as_bytes.shape[1])
    means = None
    if header.mean_bytes is not None:
        means = _means(header, documents.ids, each, given_means)

    def body(row: int, text: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {
            "text_digest": digest(b"clara.row.text", text),
            "memory_digest": _memory_digest(parts, row),
        }
        if means is not None:
            found["mean_digest"] = digest(b"clara.mean", means[row])
        if details is not None:
            found["details_digest"] = details.digests[row]
            found["details_bytes"] = details.sizes[row]
        return found

    columns = encode_heads(header, documents, body)
    if details is not None:
        columns |= details.columns
    schema = header.schema
    arrays = {name: pieces.array() for name, pieces in parts.items()}
    if means is not None:
        arrays["mean"] = pa.array([value.tobytes() for value in means], schema.field("mean").type)
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

    def __getitem__(self, row: Any) -> Any:
        return self.values[self.ends[row] : self.ends[row + 1]]

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
    for row, expected in enumerate(heads.digests["memory_digest"]):
        # Of the copy, which is what will be used.
        fits = all(len(parts[name][row]) == heads.counts[row] * sizes[name] for name in sizes)
        if not fits or _memory_digest(parts, row) != expected:
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
    header: Header, ids: Sequence[str], documents: Sequence[Tensor], given: Tensor | None
) -> Bytes:
    """Means of memory vectors as they were given, `[rows, mean_bytes]`.

    Raises:
        MemoryIndexError: finite vectors have a mean that is not; no search could read it.
    """
    means = torch.empty(len(documents), header.hidden_size, dtype=header.vector_dtype)
    if given is not None:
        if given.shape != means.shape:
            raise ValueError(f"means must be {list(means.shape)}, got {list(given.shape)}")
        means.copy_(given)
    for row, vectors in enumerate(documents if given is None else ()):
        wide = torch.promote_types(vectors.dtype, torch.float32)
        means[row] = vectors.mean(0, dtype=wide)
    finite = means.isfinite().all(1)
    if not finite.all():
        name = ids[int(finite.logical_not().nonzero()[0])]
        raise MemoryIndexError(
            f"document {name!r}: the mean of its memory is not finite in "
            f"{str(means.dtype).removeprefix('torch.')}; its values are too large"
        )
    return means.view(torch.uint8).numpy()


def _memory_digest(parts: dict[str, _Pieces], row: int) -> bytes:
    scales = parts["scales"][row] if "scales" in parts else None
    return digest(b"clara.memory", parts["memory"][row], scales)


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
