"""Questions with the place that they were read from, and the checks that every layout needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from clara.data.lines import Fields
from clara.data.records import Document
from clara.data.values import DataError, shown
from clara.evaluation.dataset import Dataset, EvaluatedQuestion

Path = str | os.PathLike[str]
Documents = Path | Mapping[str, Document]
"""A file of documents, or documents by their ids."""


@dataclass(frozen=True)
class Located:
    """A question, and what a message about it begins with."""

    where: str
    question: EvaluatedQuestion


def golden_answers(fields: Fields, name: str = "golden_answers") -> tuple[str, ...]:
    """Accepted answers, at least one, none of them blank.

    Raises:
        DataError: says where.
    """
    answers = fields.texts(name)
    for position, answer in enumerate(answers):
        if not answer.strip():
            raise DataError(f"{fields.where}: field '{name}[{position}]' is empty")
    return tuple(dict.fromkeys(answers))


def checked(questions: Iterable[Located], documents: dict[str, Document], source: str) -> Dataset:
    """A data set whose questions name only documents that are there, and know their places.

    Args:
        source: where the questions are from, for the message that there are none.

    Raises:
        DataError: there are no questions, or one names a document that is not there.
    """
    chosen = []
    for located in questions:
        question = located.question
        for field, names in (
            ("positives", question.positives),
            ("candidates", question.candidates or ()),
        ):
            for name in names:
                if name not in documents:
                    raise DataError(
                        f"{located.where}: field '{field}' names {shown(name)}, an id that none of "
                        f"the {len(documents)} documents has"
                    )
        chosen.append(replace(question, place=located.where))
    if not chosen:
        raise DataError(f"{source}: holds no questions")
    return Dataset(chosen, documents)
