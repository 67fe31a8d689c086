"""First calls that are not timed: what is set up once is no part of a question's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, runtime_checkable

from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.rankers.protocol import Ranker
from clara.evaluation.systems.grouping import GROUP

MOST_QUESTIONS = 32
"""Of the call that warms a ranker up; more would only take longer."""


@runtime_checkable
class WarmedMemory(Protocol):
    """Memory whose seconds per document are measured."""

    def warm_up(self, documents: Sequence[Document]) -> None:
        """Do once, without measuring or keeping it, what is done to documents; later do nothing."""


def warm_up_memory(part: object, documents: Sequence[Document]) -> None:
    """Warm up what a system or ranker keeps of documents, if that is measured.

    Args:
        documents: some that it will read.
    """
    memory = getattr(part, "memory", None)
    if documents and isinstance(memory, WarmedMemory):
        memory.warm_up(documents)


def warm_up_ranker(
    ranker: Ranker,
    questions: Sequence[EvaluatedQuestion],
    documents: Mapping[str, Document],
    k: int,
) -> None:
    """Rank some questions, and throw the rankings away.

    A question that ranks all documents ranks the first of them here: ranking all twice could take
    as long as the run.
    """
    few = tuple(islice(documents, GROUP))
    asked = [
        replace(each, candidates=few) if each.candidates is None else each
        for each in questions[:MOST_QUESTIONS]
    ]
    read = list(dict.fromkeys(name for each in asked for name in each.candidates or ()))
    warm_up_memory(ranker, [documents[name] for name in read[:GROUP]])
    ranker.rank(asked, documents, k)
