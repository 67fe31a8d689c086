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

    It may have more: `settings`, a JSON object with what decides its rankings; `kind`, the name
    without a compression rate; `document_seconds`, the time spent so far on documents alone, which
    does not count as ranking; and `reused_seconds`, the time saved so far by work on questions that
    another ranker has done, which does.
    """

    @property
    def name(self) -> str:
        """The name, such as "bm25" or "clara@4"; no two rankers of a run have the same."""

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        """The best `k` candidates of each question; all of them where there are fewer.

        The first questions are ranked twice, and only the second time counts.

        Args:
            documents: all documents by id. A question without candidates of its own ranks all.
        """


def candidates_of(question: EvaluatedQuestion, documents: Mapping[str, Document]) -> Sequence[str]:
    """The ids of the documents to rank for a question, each once."""
    return list(dict.fromkeys(documents if question.candidates is None else question.candidates))


def best(scores: Iterable[tuple[str, float]], k: int) -> Ranked:
    """The `k` documents with the highest scores; the name decides between equal ones."""
    return sorted(scores, key=lambda item: (-item[1], item[0]))[:k]
