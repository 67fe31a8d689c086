"""Rankers that compute nothing: the documents that hold the answer first, or any order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.rankers.protocol import Ranked, candidates_of


class GoldRanker:
    """The documents that hold the answer first, then the other candidates in their order."""

    name = "gold"

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        rankings = []
        for question in questions:
            right = [name for name in question.positives if name in documents]
            names = dict.fromkeys([*right, *candidates_of(question, documents)])
            rankings.append(_scored(list(names)[:k]))
        return rankings


class GivenRanker:
    """The candidates in the order in which the question gives them."""

    name = "given"

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        return [_scored(candidates_of(question, documents)[:k]) for question in questions]


class RandomRanker:
    """The candidates in an order that depends on the seed and the question's id alone."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    @property
    def settings(self) -> dict[str, Any]:
        return {"seed": self._seed}

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        rankings = []
        for question in questions:
            names = candidates_of(question, documents)
            drawn = random.Random(f"{self._seed}/{question.id}").sample(names, min(k, len(names)))
            rankings.append(_scored(drawn))
        return rankings


def _scored(names: Sequence[str]) -> Ranked:
    """Names with scores that fall from one to the next."""
    return [(name, 1 / (1 + row)) for row, name in enumerate(names)]
