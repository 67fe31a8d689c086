"""Ranking by the cosine of a question's and a document's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, QUERY_REASONER
from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.rankers.protocol import Ranked, best
from clara.evaluation.systems.digests import model_settings
from clara.evaluation.systems.encoded import EncodedQuestions
from clara.evaluation.systems.grouping import GROUP
from clara.evaluation.systems.store import DocumentMemory
from clara.memory.padded import PaddedMemory
from clara.model.clara import Clara
from clara.model.ranking import Candidates


class MemoryRanker:
    """CLaRa's own ranking; a document of several chunks counts as the best of them.

    Args:
        memory: of the documents. Documents are read in order of need, and what was read may be
            forgotten: only the best of each question are kept.
        model: encodes the questions; by default the one that wrote the memory.
        name: of a second model; by default "clara@" and the rate of the memory.
        encoded: shares the questions' encodings with other rankers of the same model.

    Attributes:
        kind: the name without a rate.
        reused_seconds: see `Ranker`.

    Raises:
        ValueError: another model wrote the memory, whose vectors cannot be compared.
    """

    def __init__(
        self,
        memory: DocumentMemory,
        *,
        model: Clara | None = None,
        name: str | None = None,
        encoded: EncodedQuestions | None = None,
    ) -> None:
        self.kind = "clara" if name is None else name
        self.name = f"{self.kind}@{memory.rate}" if name is None else name
        self.reused_seconds = 0.0
        self.memory = memory
        self._encoded = encoded
        self._model = memory.model if model is None else model
        self._rule = self._model.config.ranking_rule
        self._model.memory_space.require(memory.model, "the memory was written", "use its model")

    @property
    def document_seconds(self) -> float:
        measures = self.memory.measures
        return 0.0 if measures is None else measures.seconds

    @property
    def settings(self) -> dict[str, Any]:
        model = self._model
        return {
            **model_settings(model, (COMPRESSOR, QUERY_REASONER)),
            "fingerprint": model.fingerprint,
            "memory": self.memory.settings,
            "ranking": self._rule,
        }

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        if not questions:
            return []
        queries = self._encode([each.question for each in questions])
        found: list[dict[str, float]] = [{} for _ in questions]
        for names, rows in _read_together(questions, documents):
            # Candidates of one question, or a part of all documents for all that rank them.
            self._score(queries[rows], names, documents, [found[row] for row in rows])
            for row in rows:
                found[row] = dict(best(found[row].items(), k))
        return [best(each.items(), k) for each in found]

    def _encode(self, questions: list[str]) -> Tensor:
        if self._encoded is None:
            return self._model.encode_queries(questions)
        queries, saved = self._encoded.encode(questions)
        self.reused_seconds += saved
        return queries

    def _score(
        self,
        queries: Tensor,
        names: Sequence[str],
        documents: Mapping[str, Document],
        found: Sequence[dict[str, float]],
    ) -> None:
        """Put the score of each document into what each question has found."""
        kept = self.memory.read([documents[name] for name in names])
        parts = [part.to(self._model.device) for each in kept for part in each.parts]
        owners = [name for name, each in zip(names, kept, strict=True) for _ in each.parts]
        shared = [PaddedMemory.of(parts)] * len(found)
        ranked = Candidates(shared, None, True, self._rule).rank(queries, len(parts))
        for scores, (values, order) in zip(found, ranked, strict=True):
            for value, at in zip(values.tolist(), order.tolist(), strict=True):
                name = owners[at]
                scores[name] = max(value, scores.get(name, -torch.inf))


def _read_together(
    questions: Sequence[EvaluatedQuestion], documents: Mapping[str, Document]
) -> Iterator[tuple[Sequence[str], list[int]]]:
    """Names of documents to read at once, with the rows of the questions that rank them."""
    everything = [row for row, each in enumerate(questions) if each.candidates is None]
    if everything:
        every = list(documents)
        for first in range(0, len(every), GROUP):
            yield every[first : first + GROUP], everything
    for row, question in enumerate(questions):
        if question.candidates:
            yield list(dict.fromkeys(question.candidates)), [row]
