"""What an index is and holds, in plain values."""

from __future__ import annotations

import copy
from typing import Any

from clara.index.catalog import Catalog
from clara.index.folders import bytes_on_disk
from clara.index.header import Header
from clara.index.sizing import index_bytes


def describe(catalog: Catalog, header: Header, path: str) -> dict[str, Any]:
    """See `MemoryIndex.info`."""
    documents = len(catalog.documents)
    on_disk = bytes_on_disk(path)
    written = catalog.memory_tokens
    return {
        "path": path,
        "format_version": header.format_version,
        "count": len(catalog.rows),
        "documents": documents,
        "vectors": written,
        "memory_tokens": header.memory_tokens,
        "hidden_size": header.hidden_size,
        "dtype": header.dtype_name,
        "storage": header.storage_name,
        "fingerprint": header.fingerprint,
        "bytes": on_disk,
        "bytes_per_document": on_disk / documents if documents else 0.0,
        "expected_bytes_per_document": _expected(catalog, header),
        "tokens": catalog.tokens,
        "effective_compression": catalog.tokens / written if written else 0.0,
        "duplicate_ids": list(catalog.duplicates),
        "columns": None if header.columns is None else dict(header.columns),
        "settings": copy.deepcopy(header.settings),
    }


def _expected(catalog: Catalog, header: Header) -> float | None:
    """Bytes of a document by `index_bytes`; None in formats that it does not describe."""
    if header.storage is None or catalog.string_bytes is None:
        return None
    documents = len(catalog.documents)
    total = index_bytes(
        header.stored_as,
        header.hidden_size,
        rows=len(catalog.rows),
        vectors=catalog.memory_tokens,
        string_bytes=catalog.string_bytes,
        with_means=header.mean_bytes is not None,
        with_details=header.columns is not None,
    )
    return total / documents if documents else 0.0
