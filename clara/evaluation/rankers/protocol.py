"""What an evaluation asks of a ranker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion

Ranked: TypeAlias = list[tuple[str, float]]
"""Ids of documents with their scores, best first."""


class Ranker(Protocol):
    """A way to order documents. People may bring their own.

    It may have `settings`, a JSON object with what decides its rankings, and `document_seconds`,
    the time spent so far on documents alone, which does not count as ranking.
    """

    @property
    def name(self) -> str:
        """Such as "bm25"; no two rankers of a run have the same."""

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        """The best `k` candidates of each question; all of them where there are fewer.

        Args:
            documents: all documents by id. A question without candidates of its own ranks all.
        """


def candidates_of(question: EvaluatedQuestion, documents: Mapping[str, Document]) -> Sequence[str]:
    """The ids of the documents to rank for a question, each once."""
    return list(dict.fromkeys(documents if question.candidates is None else question.candidates))


def best(scores: Iterable[tuple[str, float]], k: int) -> Ranked:
    """The `k` documents with the highest scores; the name decides between equal ones."""
    return sorted(scores, key=lambda item: (-item[1], item[0]))[:k]
