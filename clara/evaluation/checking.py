"""Refuse data that cannot be evaluated, before anything is computed."""

from __future__ import annotations

from clara.data.values import shown
from clara.evaluation.dataset import Dataset
from clara.evaluation.errors import EvaluationError


def check_dataset(dataset: Dataset, *, answered: bool = True, ranked: bool = False) -> None:
    """Refuse a data set with a question that cannot be evaluated.

    Args:
        answered: the questions are answered, and not only their documents ranked.
        ranked: documents are ranked, so that there have to be some.

    Raises:
        EvaluationError: there is no question or no document, an id is given twice, a question is
            empty or has no golden answers, or names a document that is not there; names the
            file and line, or the question, and the field.
    """
    if not dataset.questions:
        raise EvaluationError("there are no questions to evaluate")
    if ranked and not dataset.documents:
        raise EvaluationError("there are no documents to rank")
    seen: set[str] = set()
    for question in dataset.questions:
        place = question.place or f"question {shown(question.id)}"
        if question.id in seen:
            raise EvaluationError(f"{place}: this id is given twice")
        seen.add(question.id)
        if not question.question.strip():
            raise EvaluationError(f"{place}: field 'question' is empty")
        if answered and question.answerable and not question.golden_answers:
            raise EvaluationError(
                f"{place}: field 'golden_answers' is empty; a question that no document answers "
                "has 'answerable' false, and without systems only rankings are evaluated"
            )
        if question.candidates is not None and not question.candidates:
            raise EvaluationError(f"{place}: field 'candidates' is empty")
        for field, names in (
            ("positives", question.positives),
            ("candidates", question.candidates or ()),
        ):
            for name in names:
                if name not in dataset.documents:
                    raise EvaluationError(
                        f"{place}: field '{field}' names {shown(name)}, which is the id of no "
                        "document"
                    )
