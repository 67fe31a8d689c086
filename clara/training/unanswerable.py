"""Questions without an answer, made of those that have one.

A model that was only ever asked what its documents say answers everything. Here some questions of a
training set get documents that do not hold the answer, and a refusal as the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clara.data.examples import AnswerExample, DocumentQuestions, RankingExample
from clara.data.unanswerable import REFUSAL, holds, may_answer
from clara.training.moments import Moment, asks_for_moment, rates_of

_TRIES = 16
"""So many examples are drawn to find documents that do not answer a question."""


class UnanswerableCollator:
    """Batches in which a share of the examples is asked without an answer.

    An example that is drawn keeps its questions. Its documents become those of another example, and
    its answers `REFUSAL`; questions that the other documents may answer are left out, and so are
    those that the other example asks of them. Of a
    `RankingExample` only the candidates that hold the answer are replaced: the others, which are
    often hard to tell from them, stay. An example for which no documents are found is left as it
    is.

    Args:
        collate: makes a batch of the examples, with or without a moment, see `asks_for_moment`.
        share: of the examples, from 0 to 1.
        data: examples that documents are taken from.

    Attributes:
        rates: those of `collate`, see `clara.training.moments.rates_of`.
    """

    asks_for_moment = True

    def __init__(self, collate: Callable[..., Any], share: float, data: Sequence[Any]) -> None:
        self._collate = collate
        self._share = share
        self._data = data
        self.rates = rates_of(collate)

    def __call__(self, examples: Sequence[Any], moment: Moment, **options: Any) -> Any:
        """Make a batch.

        Args:
            moment: seeds the draw.
            options: of `collate`.
        """
        generator = moment.random("unanswerable")
        drawn = [
            unanswerable(example, self._data, generator)
            if generator.random() < self._share
            else example
            for example in examples
        ]
        if asks_for_moment(self._collate):
            return self._collate(drawn, moment, **options)
        return self._collate(drawn, **options)


def unanswerable(example: Any, data: Sequence[Any], generator: random.Random) -> Any:
    """The example without an answer, see `UnanswerableCollator`; itself where that fails."""
    if isinstance(example, RankingExample):
        return _without_positives(example, data, generator)
    for _ in range(_TRIES):
        other = data[generator.randrange(len(data))]
        documents, answered = other.documents, _questions(other)
        if not set(documents).isdisjoint(example.documents):
            continue
        said = example.answers if isinstance(example, DocumentQuestions) else (example.answer,)
        kept = tuple(
            question
            for question, answer in zip(_questions(example), said, strict=True)
            if question not in answered and not may_answer(documents, question, answer)
        )
        if kept and isinstance(example, AnswerExample):
            return replace(example, documents=documents, answer=REFUSAL)
        if kept:
            return DocumentQuestions(documents, kept, (REFUSAL,) * len(kept))
    return example


def _questions(example: Any) -> tuple[str, ...]:
    """What is asked of an example's documents."""
    return example.questions if isinstance(example, DocumentQuestions) else (example.question,)


def _without_positives(
    example: RankingExample, data: Sequence[Any], generator: random.Random
) -> RankingExample:
    """Other documents in the places of those that answer, so that there are as many as before."""
    documents = list(example.documents)
    answering = {place for place, text in enumerate(documents) if holds(text, example.answer)}
    answering.update(example.positives)
    for place in sorted(answering):
        for _ in range(_TRIES):
            text = generator.choice(data[generator.randrange(len(data))].documents)
            fits = text not in documents and text not in example.documents
            if fits and not may_answer([text], example.question, example.answer):
                documents[place] = text
                break
        else:
            return example
    if not answering:  # where the answer stands is not known
        return example
    return replace(example, documents=tuple(documents), positives=(), answer=REFUSAL)
