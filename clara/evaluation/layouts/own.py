"""This project's JSON lines: questions and documents, each in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from clara.data.lines import Fields
from clara.data.recognition import CORPUS, QUESTIONS
from clara.data.records import Document, identified, read_documents
from clara.data.values import DataError
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.layouts.located import Documents, Located, Path, checked, golden_answers


def read(questions: Path, documents: Documents | None) -> Dataset:
    """Read questions and the documents that they are asked of.

    A question is a line `{"id", "question", "golden_answers", "positives"?, "candidates"?,
    "answerable"?}`; a document is a line as `clara.data.records.read_documents` reads it.

    Raises:
        DataError: names file, line and field. What can be wrong: as `read_documents`; a question
            has no golden answer although it is answerable, or positives although it is not; its
            list of candidates is empty; it names a document that is not there.
    """
    located = list(_questions(questions))
    return checked(located, documents_of(documents, questions), os.fspath(questions))


def documents_of(documents: Documents | None, questions: Path) -> dict[str, Document]:
    """Documents of a file in this layout, or those given, by their ids.

    Raises:
        DataError: there are none, unless an empty mapping says so; or as `read_documents`.
    """
    if documents is None:
        raise DataError(f"{os.fspath(questions)}: documents are missing; {CORPUS}")
    if isinstance(documents, str | os.PathLike):
        return by_id(read_documents(documents), documents)
    return dict(documents)


def by_id(documents: Iterable[Document], source: Path) -> dict[str, Document]:
    """Documents by their ids; at least one.

    Raises:
        DataError: there is none.
    """
    found = {document.id: document for document in documents}
    if not found:
        raise DataError(f"{os.fspath(source)}: holds no documents")
    return found


def _questions(path: Path) -> Iterator[Located]:
    for name, line in identified(path, QUESTIONS):
        answerable = line.flag("answerable", True)
        answers = "golden_answers" in line and line.values["golden_answers"] != []
        question = EvaluatedQuestion(
            id=name,
            question=line.text("question"),
            golden_answers=golden_answers(line) if answerable or answers else (),
            positives=tuple(dict.fromkeys(line.ids("positives"))),
            candidates=_candidates(line),
            answerable=answerable,
        )
        if question.positives and not answerable:
            raise DataError(
                f"{line.where}: field 'positives' names documents that hold the answer, but "
                "'answerable' is false"
            )
        yield Located(line.where, question)


def _candidates(line: Fields) -> tuple[str, ...] | None:
    if "candidates" not in line:
        return None
    candidates = tuple(dict.fromkeys(line.ids("candidates")))
    if not candidates:
        raise DataError(
            f"{line.where}: field 'candidates' is empty; leave it out to rank all documents"
        )
    return candidates
