"""How many bytes an index takes, from what is in it. docs/sizing.md states the same formula."""

from __future__ import annotations

from clara.index.storage import Storage

ROW_BYTES = 110
"""Of a row beside its strings and memory: numbers, checksums, and where each column begins."""
SCALES_BYTES = 9
"""More where memory is quantized, beside the scales themselves."""
MEAN_BYTES = 17
"""More where a mean is stored, beside the mean itself."""
DETAILS_BYTES = 29
"""More in an index with columns for metadata, beside what is in them."""


def index_bytes(
    storage: Storage,
    hidden_size: int,
    *,
    rows: int,
    vectors: int,
    string_bytes: int,
    with_means: bool,
    with_details: bool = False,
) -> int:
    """Bytes of an index of format 3 after its files were joined and old versions removed.

    Args:
        storage: how values are stored.
        hidden_size: H.
        rows: documents, or chunks of them.
        vectors: memory vectors of all rows.
        string_bytes: of ids, ids of documents, titles and texts of all rows, in UTF-8; and of
            metadata, sources, digests and marks, 8 for each value that is there but booleans,
            and the strings among them.
        with_means: documents are ranked by the mean of their memory.
        with_details: the index has columns for metadata.

    Example:
        >>> from clara.index.storage import STORAGES
        >>> index_bytes(STORAGES["int8"], 576, rows=1000, vectors=16_000, string_bytes=800_000,
        ...             with_means=True)
        11368000
    """
    quantized = storage.dtype is None
    row_bytes = ROW_BYTES + (SCALES_BYTES if quantized else 0)
    if with_means:
        row_bytes += MEAN_BYTES + hidden_size * storage.mean_dtype.itemsize
    if with_details:
        row_bytes += DETAILS_BYTES
    vector_bytes = storage.vector_bytes(hidden_size) + storage.scale_bytes(hidden_size)
    return rows * row_bytes + vectors * vector_bytes + string_bytes
