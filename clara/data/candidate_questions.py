"""Questions that are asked of given candidates, to evaluate with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from clara.data.records import Document


@dataclass(frozen=True)
class CandidateQuestion:
    """A question with the documents to find its answer in.

    The line `{"id", "question", "golden_answers", "positives", "candidates", "answerable"?}`.

    Attributes:
        id: different from those of the other questions, without white space.
        golden_answers: accepted answers, at least one if `answerable`.
        positives: ids of the candidates that hold the answer, all of them needed; empty if the
            question is not `answerable`.
        candidates: ids of documents in random order.
        answerable: False if no document holds the answer. Written only where it is False.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    positives: tuple[str, ...]
    candidates: tuple[str, ...]
    answerable: bool = True

    def fields(self) -> dict[str, Any]:
        """The line of a file of questions."""
        fields: dict[str, Any] = {
            "id": self.id,
            "question": self.question,
            "golden_answers": list(self.golden_answers),
            "positives": list(self.positives),
            "candidates": list(self.candidates),
        }
        return fields if self.answerable else {**fields, "answerable": False}


class EvaluationSet(NamedTuple):
    """Questions, and documents that hold all of their candidates."""

    documents: list[Document]
    questions: list[CandidateQuestion]
