"""Which compressed documents an index takes, whatever it holds already."""

from __future__ import annotations

from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.memory.documents import CompressedDocuments
from clara.memory.space import check_shape


def check_documents(header: Header, path: str, compressed: CompressedDocuments) -> None:
    """Refuse what cannot be added to an index, whatever it holds already.

    Raises:
        TypeError, MemoryIndexError: see `MemoryIndex.add`.
    """
    if not isinstance(compressed, CompressedDocuments):
        raise TypeError(f"compressed must be CompressedDocuments, got {type(compressed).__name__}")
    header.memory_space.require(
        compressed,
        "compressed was made",
        _remedy(header, path),
        own="the index's",
        error=MemoryIndexError,
    )
    memory = compressed.memory
    m = header.memory_tokens if header.span_rate is None else None
    check_shape(memory, m, header.hidden_size, "compressed.memory", MemoryIndexError)
    _check_counts(header, compressed)
    if not memory.is_floating_point():
        raise TypeError(f"compressed.memory must be floating point, got {memory.dtype}")
    seen = set()
    for name in compressed.ids:
        if not name:
            raise MemoryIndexError("compressed.ids holds an empty id")
        if name in seen:
            raise MemoryIndexError(f"compressed.ids holds {name!r} twice")
        seen.add(name)


def _check_counts(header: Header, compressed: CompressedDocuments) -> None:
    """Refuse documents with other numbers of memory tokens than the index's rate gives."""
    expected = header.counts(compressed.token_counts)
    for name, tokens, count, right in zip(
        compressed.ids, compressed.token_counts, compressed.counts, expected, strict=True
    ):
        if count != right:
            raise MemoryIndexError(
                f"document {name!r} has {count} memory tokens for {tokens} tokens, in the index "
                f"it must have {right}"
                + (f" (compression rate {header.span_rate})" if header.span_rate else "")
            )
    if compressed.memory.shape[1] > header.memory_tokens:
        longest = max(compressed.counts, default=0)
        if longest > header.memory_tokens:
            name = compressed.ids[compressed.counts.index(longest)]
            raise MemoryIndexError(
                f"document {name!r} has {longest} memory tokens, the index holds at most "
                f"{header.memory_tokens} of a document"
            )


def _remedy(header: Header, path: str) -> str:
    """What to do about memory of another model."""
    if header.format_version >= 2:
        return "compress the documents with the index's model"
    return (
        "if an earlier release wrote the index with this model, run 'clara index upgrade "
        f"--model MODEL {path}'; else compress the documents with the index's model"
    )
