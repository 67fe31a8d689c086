"""What is evaluated: questions, and the documents they are asked of."""

from __future__ import annotations

from dataclasses import dataclass, field

from clara.data.records import Document


@dataclass(frozen=True)
class EvaluatedQuestion:
    """A question with its accepted answers and, where they are known, its documents.

    Attributes:
        id: different from those of the other questions.
        golden_answers: accepted answers, best known first; empty if the data set has none, as
            BEIR's have: then only rankings can be evaluated.
        positives: ids of the documents that hold the answer; empty if they are not known.
        candidates: ids of the documents to rank for this question; None means all documents.
        answerable: False if no document holds the answer; the right reply is then a refusal.
        place: file and line that it was read from, for messages; None if it was read from none.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    positives: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    answerable: bool = True
    place: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Dataset:
    """Questions, and documents by their ids, in the order in which they were read."""

    questions: list[EvaluatedQuestion]
    documents: dict[str, Document]
