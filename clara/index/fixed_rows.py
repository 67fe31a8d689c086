"""Memory in rows of formats 1 and 2: as many values in each, in the dtype they are read in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import pad

from clara.index.arrays import values_of
from clara.index.digests import digest
from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.index.heads import Heads, damaged, encode_heads, record_batch
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory


def encode_fixed(header: Header, documents: CompressedDocuments) -> pa.RecordBatch:
    """Rows to store.

    Raises:
        MemoryIndexError: a value that cannot be stored; names the document.
    """
    padding = header.memory_tokens - documents.memory.shape[1]
    memory = documents.memory.detach().to("cpu", header.dtype)
    memory = pad(memory, (0, 0, 0, padding))  # which cuts columns of padding if there are too many
    memory = memory.reshape(-1, header.width)
    require_finite(header, documents.ids, memory.isfinite().all(1))
    carried = memory.contiguous().view(header.carrier).numpy()

    def beside(texts: list[bytes]) -> dict[str, list[Any]]:
        rows = zip(texts, carried, strict=True)
        return {"body_digest": [digest(b"clara.body", text, row) for text, row in rows]}

    columns = encode_heads(header, documents, beside)
    schema = header.schema
    values = pa.FixedSizeListArray.from_arrays(
        pa.array(carried.reshape(-1)), type=schema.field("memory").type
    )
    return record_batch(schema, columns, {"memory": values})


def decode_fixed(
    header: Header, batch: pa.RecordBatch, heads: Heads, rows: Sequence[int], path: str
) -> PaddedMemory:
    """Check the memory of rows and their texts, and read the memory.

    Raises:
        MemoryIndexError: a row is not what was written; names its document.
    """
    texts = values_of(batch.column("text"))
    carried = batch.column("memory").flatten().to_numpy()
    out = torch.empty(len(heads.ids), header.width, dtype=header.dtype)
    if carried.size != out.numel():
        raise damaged(path, heads.ids[0].encode(), rows[0])
    target = out.view(header.carrier).numpy()
    target[...] = carried.reshape(target.shape)
    for row, text in enumerate(texts):
        # Of the copy, which is what will be used.
        expected = heads.digests["body_digest"][row]
        if text is None or digest(b"clara.body", text, target[row]) != expected:
            raise damaged(path, heads.ids[row].encode(), rows[row])
    return PaddedMemory(out.view(-1, header.memory_tokens, header.hidden_size), heads.counts)


def require_finite(header: Header, ids: Sequence[str], finite: Tensor) -> None:
    """Refuse memory with values that are not finite in the dtype it is read in.

    Args:
        finite: bool, of each document.
    """
    if not finite.all():
        name = ids[int(finite.logical_not().nonzero()[0])]
        raise MemoryIndexError(
            f"document {name!r}: memory holds values that are not finite in {header.dtype_name}"
        )
