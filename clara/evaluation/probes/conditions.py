"""The conditions of a probe: questions of one kind, told by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from clara.data.factbook.passages import PASSAGE_TOKENS, estimated_tokens
from clara.data.records import Document
from clara.errors.checks import as_integer
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.errors import EvaluationError

PREFIX = "probe"
"""What the ids of generated questions begin with."""


class Condition(NamedTuple):
    """Questions that are asked under one condition.

    Attributes:
        name: of the probe and what varies, such as "needle/256/50". The ids of its questions are
            "probe/needle/256/50/0" and so on.
        dataset: the questions and their documents. Each question has candidates, which are all
            meant to be read, in their order.
    """

    name: str
    dataset: Dataset


@dataclass(frozen=True)
class ProbeSettings:
    """How many questions a probe has, and what it varies.

    Attributes:
        seed: of all that is drawn. The same settings give the same questions on any machine.
        questions: under each condition; of needles at each length, over all depths.
        document_tokens: the most tokens of a document.
        count_tokens: number of tokens of a text, such as by a model's tokenizer; the default
            estimates it.
        distractors: how many documents without the answer stand beside the one with it.
        positions: of the document with the answer, from 1 to this number.
        candidates: documents of a question without an answer.
        lengths: of needles, in tokens of all documents of a question.
        depths: of needles, in percent of the sentences around them.

    Raises:
        TypeError, ValueError: a number is no integer or too small; names the setting.
    """

    seed: int = 0
    questions: int = 20
    document_tokens: int = PASSAGE_TOKENS
    count_tokens: Callable[[str], int] = estimated_tokens
    distractors: tuple[int, ...] = (1, 2, 4, 9, 19)
    positions: int = 5
    candidates: int = 5
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)

    def __post_init__(self) -> None:
        least = {"seed": 0, "document_tokens": 48, "depths": 0, "lengths": 48}
        for field in fields(self):
            if field.name == "count_tokens":
                continue
            given = getattr(self, field.name)
            if isinstance(field.default, tuple):
                numbers = tuple(self._checked(field.name, each, least) for each in given)
                if not numbers or len(set(numbers)) < len(numbers):
                    raise ValueError(f"{field.name} must be different numbers, got {given!r}")
                object.__setattr__(self, field.name, numbers)
            else:
                object.__setattr__(self, field.name, self._checked(field.name, given, least))
        if max(self.depths) > 100:
            raise ValueError(f"depths are percent, at most 100, got {max(self.depths)}")

    @staticmethod
    def _checked(name: str, given: object, least: dict[str, int]) -> int:
        return as_integer(given, name, least=least.get(name, 1))


def condition(
    name: str, questions: Sequence[EvaluatedQuestion], documents: Iterable[Document]
) -> Condition:
    """A condition with the documents that its questions name."""
    named = {each for question in questions for each in question.candidates or ()}
    kept = {document.id: document for document in documents if document.id in named}
    return Condition(name, Dataset(list(questions), kept))


def question_id(name: str, number: int) -> str:
    """The id of a question under a condition."""
    return f"{PREFIX}/{name}/{number}"


def condition_of(identifier: str) -> str | None:
    """The condition that a question was asked under; None if it is no question of a probe.

    >>> condition_of("probe/needle/256/50/3")
    'needle/256/50'
    """
    begin, _, rest = identifier.partition("/")
    name, _, number = rest.rpartition("/")
    return name if begin == PREFIX and name and number.isdecimal() else None


def fitting(
    conditions: Iterable[Condition], count_tokens: Callable[[str], int], room: int
) -> list[Condition]:
    """The conditions whose questions can be read with the text of all their documents.

    Args:
        room: the most tokens of the documents of a question and the question.
    """
    kept = []
    for each in conditions:
        documents = each.dataset.documents
        texts = (
            "\n\n".join([*(documents[name].text for name in q.candidates or ()), q.question])
            for q in each.dataset.questions
        )
        if all(count_tokens(text) <= room for text in texts):
            kept.append(each)
    return kept


def joined(conditions: Iterable[Condition]) -> Dataset:
    """All conditions as one data set, for one run.

    Raises:
        EvaluationError: two questions have one id, or two documents of one id differ.
    """
    questions: dict[str, EvaluatedQuestion] = {}
    documents: dict[str, Document] = {}
    for each in conditions:
        for question in each.dataset.questions:
            if question.id in questions:
                raise EvaluationError(f"two questions have the id {question.id!r}")
            questions[question.id] = question
        for name, document in each.dataset.documents.items():
            if documents.setdefault(name, document) != document:
                raise EvaluationError(f"two documents with the id {name!r} differ")
    return Dataset(list(questions.values()), documents)
