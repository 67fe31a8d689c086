"""FlashRAG's layout (Jin et al., 2024, arXiv 2405.13576): JSON lines with metadata and choices."""

from __future__ import annotations

import os
from collections.abc import Iterator

from clara.data.lines import Fields
from clara.data.recognition import CORPUS, QUESTIONS
from clara.data.records import Document, identified
from clara.data.values import DataError, kind
from clara.errors.checks import is_integer
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.layouts.located import Documents, Located, Path, checked, golden_answers
from clara.evaluation.layouts.own import by_id, documents_of


def read(questions: Path, documents: Documents | None) -> Dataset:
    """Read a data set and a corpus of FlashRAG.

    A question is a line `{"id", "question", "golden_answers", "choices"?, "metadata"?}`. Where it
    has "choices", its golden answers are numbers of choices from 0 on, and become their texts. A
    document is a line `{"id", "contents"}`, or with "text" in place of "contents" as FlashRAG
    takes it too. Contents begin with a line for the title, which stays there: it is compressed and
    ranked with the text. Metadata are ignored; no positives are known.

    Raises:
        DataError: names file, line and field: as the reader of our own layout; also for a number
            of a choice that is not there.
    """
    located = list(_questions(questions))
    if isinstance(documents, str | os.PathLike):
        found = by_id(_documents(documents), documents)
    else:
        found = documents_of(documents, questions)
    return checked(located, found, os.fspath(questions))


def _documents(path: Path) -> Iterator[Document]:
    for name, line in identified(path, CORPUS):
        field = "text" if "text" in line and "contents" not in line else "contents"
        yield Document(name, line.text(field), line.optional_text("title"))


def _questions(path: Path) -> Iterator[Located]:
    for name, line in identified(path, QUESTIONS):
        chosen = "choices" in line and line.values["choices"] != []
        answers = _chosen(line) if chosen else golden_answers(line)
        yield Located(line.where, EvaluatedQuestion(name, line.text("question"), answers))


def _chosen(line: Fields) -> tuple[str, ...]:
    choices, numbers = line.texts("choices"), line.values.get("golden_answers")
    if not isinstance(numbers, list) or not numbers:
        raise DataError(
            f"{line.where}: field 'golden_answers' must be a list of numbers of choices, got "
            f"{'an empty list' if numbers == [] else kind(numbers)}"
        )
    answers = []
    for position, number in enumerate(numbers):
        place = f"{line.where}: field 'golden_answers[{position}]'"
        if not is_integer(number):
            raise DataError(f"{place} must be the number of a choice, got {kind(number)}")
        if not 0 <= number < len(choices):
            raise DataError(f"{place} is {number}, there are {len(choices)} choices")
        answers.append(choices[number])
    return tuple(dict.fromkeys(answers))
