"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from clara.index.contents import Contents


@dataclass(frozen=True)
class Hit:
    """A document found by `MemoryIndex.search`.

    Attributes:
        text, title: what the memory was made from.
        score: cosine to the query, in [-1, 1].
        row: position in the index, in the order documents were added.
        memory: `[m, H]` on the CPU, in the index's dtype.
    """

    id: str
    document_id: str
    title: str | None
    text: str
    score: float
    row: int
    memory: Tensor = field(repr=False, compare=False)


def read_hits(contents: Contents, scores: Tensor, rows: Tensor) -> list[list[Hit]]:
    """Hits of each query from scores and rows `[B, k]`; each document is read once."""
    distinct = sorted(set(rows.flatten().tolist()))
    found = contents.take(distinct)
    place = {row: position for position, row in enumerate(distinct)}

    def hit(score: float, row: int) -> Hit:
        at = place[row]
        return Hit(
            id=found.ids[at],
            document_id=found.document_ids[at],
            title=found.titles[at],
            text=found.texts[at],
            score=score,
            row=row,
            memory=found.memory[at],
        )

    return [
        [hit(score, row) for score, row in zip(*ranked)]
        for ranked in zip(scores.tolist(), rows.tolist())
    ]
