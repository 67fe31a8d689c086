"""The queries and hits of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clara.data.marks import Scalar
from clara.index.contents import RowReader
from clara.index.header import Header

_QUERY_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Hit:
    """A document found by `MemoryIndex.search`.

    Attributes:
        text, title: the text and title that were compressed.
        score: cosine to the query, in [-1, 1].
        row: position in the index, in the order documents were added.
        memory: `[m, H]` on the CPU, in the index's dtype; m is the document's own in memory form
            "spans".
        metadata: of the document; empty in an index without columns for metadata.
        offset: characters of the document's text before `text`; None without such columns.
        place: the page or heading that `text` begins in, "page 3" or "## Rivers"; None where the
            index does not know it.
    """

    id: str
    document_id: str
    title: str | None
    text: str
    score: float
    row: int
    memory: Tensor = field(repr=False, compare=False)
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    offset: int | None = None
    place: str | None = None


def as_queries(header: Header, query_memory: Tensor) -> Tensor:
    """Queries `[B, m * H]` on the CPU, `[B, H]` where documents are ranked by their mean.

    Raises:
        TypeError, ValueError: see `MemoryIndex.search`.
    """
    if not isinstance(query_memory, Tensor):
        raise TypeError(f"query_memory must be a torch.Tensor, got {type(query_memory).__name__}")
    if query_memory.dtype not in _QUERY_DTYPES:
        raise TypeError(
            f"query_memory must be float32, float16 or bfloat16, got {query_memory.dtype}"
        )
    shape = (header.vector_width // header.hidden_size, header.hidden_size)
    if query_memory.ndim not in (2, 3) or tuple(query_memory.shape[-2:]) != shape:
        raise ValueError(
            _of_other_ranking(header, query_memory)
            or f"query_memory must be [B, {shape[0]}, {shape[1]}] or [{shape[0]}, {shape[1]}], "
            f"got {list(query_memory.shape)}"
        )
    queries = query_memory.detach().cpu().reshape(-1, header.vector_width)
    if not queries.isfinite().all():
        raise ValueError("query_memory holds values that are not finite")
    return queries


def _of_other_ranking(header: Header, query_memory: Tensor) -> str | None:
    """What to say of questions as the other way of ranking has them; None if they are not."""
    other, m = "mean", 1
    if header.ranking_rule == "mean":
        other, m = "flattened", header.memory_tokens
    if header.span_rate is not None or tuple(query_memory.shape[-2:]) != (m, header.hidden_size):
        return None
    rule = header.ranking_rule
    return (
        f'query_memory is of a model with ranking "{other}", the index ranks by "{rule}"; load the '
        f'model with ranking="{rule}", or compress the documents again'
    )


def read_hits(contents: RowReader, scores: Tensor, rows: Tensor) -> list[list[Hit]]:
    """Hits of each query from scores and rows `[B, k]`; each row is read once."""
    distinct = sorted(set(rows.flatten().tolist()))
    found, details = contents.take_with_details(distinct)
    place = {row: position for position, row in enumerate(distinct)}

    def hit(score: float, row: int) -> Hit:
        at = place[row]
        beside = details[at]
        return Hit(
            id=found.ids[at],
            document_id=found.document_ids[at],
            title=found.titles[at],
            text=found.texts[at],
            score=score,
            row=row,
            memory=found.memory[at, : found.counts[at]],
            metadata={} if beside is None else dict(beside.metadata),
            offset=None if beside is None else beside.offset,
            place=None if beside is None else beside.place,
        )

    return [
        [hit(score, row) for score, row in zip(*ranked)]
        for ranked in zip(scores.tolist(), rows.tolist())
    ]
