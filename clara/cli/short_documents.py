"""Documents that have fewer tokens than the memory tokens they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clara.memory.documents import CompressedDocuments


def count_short(compressed: CompressedDocuments) -> int:
    """How many documents have fewer tokens than memory tokens; chunks of long ones do not count."""
    memory_tokens = compressed.memory.shape[1]
    rows = zip(compressed.ids, compressed.document_ids, compressed.token_counts, strict=True)
    return sum(name == document and tokens < memory_tokens for name, document, tokens in rows)


def remark(short: int, documents: int, memory_tokens: int) -> str:
    """What to do about short documents, on one line."""
    whose = "1 document has" if short == 1 else f"{short:,} of {documents:,} documents have"
    return (
        f"{whose} fewer tokens than the {memory_tokens} memory tokens of a document, so memory is "
        "longer than the text there. Join short texts, or make a model with fewer memory tokens: "
        "`clara init` with a higher --compression-rate or a lower --document-length."
    )
