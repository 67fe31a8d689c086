"""What ranking and answering return, and how documents are found for a question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from clara.memory.space import check_readable
from clara.model.ranking import Candidates

if TYPE_CHECKING:
    from clara.model.clara import Clara


class Ranking(NamedTuple):
    """Candidates of `B` questions by cosine similarity.

    Attributes:
        scores: float32 `[B, k]`, descending; -inf in slots beyond a question's candidates.
        indices: int64 `[B, k]`, positions among the question's candidates; -1 in such slots.
    """

    scores: Tensor
    indices: Tensor


@dataclass(frozen=True)
class RankedDocument:
    """A document an answer was made from; `id` names the chunk if the document was split."""

    id: str
    document_id: str
    title: str | None
    score: float
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer and what it was made from.

    Attributes:
        text: the generated answer.
        documents: what it was generated from, best first; empty when only memory was given.
        prompt_tokens: positions of the prompt, memory slots included.
        text_prompt_tokens: tokens of the same prompt with the documents' text in place of their
            memory; None when the texts are not known.
        timings_ms: wall time of "query", "rank" and "generate" for the whole batch.
    """

    text: str
    documents: list[RankedDocument]
    prompt_tokens: int
    text_prompt_tokens: int | None
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The documents selected for one question: memory `[k, m, H]`, best first."""

    memory: Tensor
    documents: list[RankedDocument]

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]


def find(model: Clara, queries: Tensor, source: Any, k: int) -> list[Found]:
    """The best `k` documents for each question.

    Args:
        queries: `[B, m, H]`.
        source: what `Candidates.gather` takes, or an index: an object with `fingerprint` and
            `search(queries, k)`.

    Raises:
        ValueError: the index holds another model's memory, or no documents.
    """
    if not hasattr(source, "search"):
        candidates = Candidates.gather(model, source, len(queries))
        return [
            _found(candidates, row, scores, order)
            for row, (scores, order) in enumerate(candidates.rank(queries, k))
        ]
    check_readable(
        model,
        source.fingerprint,
        "the index was written",
        "compress its documents again with this model",
    )
    found = []
    for hits in source.search(queries, k):
        if not hits:
            raise ValueError("the index is empty")
        ranked = [RankedDocument(h.id, h.document_id, h.title, h.score, h.text) for h in hits]
        found.append(Found(torch.stack([h.memory for h in hits]), ranked))
    return found


def _found(candidates: Candidates, row: int, scores: Tensor, order: Tensor) -> Found:
    memory = candidates.memory[row][order]
    if candidates.documents is None:
        return Found(memory, [])
    chosen = candidates.documents[row]
    ranked = [
        RankedDocument(
            chosen.ids[i],
            chosen.document_ids[i],
            chosen.titles[i],
            score,
            chosen.texts[i],
        )
        for i, score in zip(order.tolist(), scores.tolist(), strict=True)
    ]
    return Found(memory, ranked)


def padded_ranking(ranked: Sequence[tuple[Tensor, Tensor]]) -> Ranking:
    """Rankings of unequal length in one pair of tensors."""
    if not ranked:
        return Ranking(torch.empty(0, 0), torch.empty(0, 0, dtype=torch.long))
    width = max(len(order) for _, order in ranked)
    scores = ranked[0][0].new_full((len(ranked), width), -torch.inf)
    indices = ranked[0][1].new_full((len(ranked), width), -1)
    for row, (values, order) in enumerate(ranked):
        scores[row, : len(order)] = values
        indices[row, : len(order)] = order
    return Ranking(scores, indices)


class Clock:
    """Wall time of consecutive steps, in milliseconds; waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.laps: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.laps[name] = 1000 * (now - self._last)
        self._last = now
