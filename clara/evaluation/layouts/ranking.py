"""Records of end-to-end training: each question brings the documents to rank."""

from __future__ import annotations

import os
from collections.abc import Iterator

from clara.data.examples import answer_of, contrastive_example
from clara.data.lines import Fields, identifier, lines, parsed
from clara.data.records import Document
from clara.data.values import DataError, shown
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.layouts.located import Located, Path, checked, golden_answers


def read(path: Path) -> Dataset:
    """Read records `{"id"?, "question", "docs", "pos_index"?, and answers}`.

    The documents of a record are the candidates of its question, those at `pos_index` (from 0 on)
    the positives. Golden answers are those of "golden_answers", "gold_answer", "answers" and
    "answer", whichever is first: before the answer of a teacher. A text is one document wherever
    it stands; its id is its number in the order of first appearance, from 0 on. A question without
    an id gets the number of its record.

    Raises:
        DataError: names file, line and field: a line is malformed, has no answer or no documents, a
            position that is not there, or the id of an earlier question.
    """
    names: dict[str, str] = {}
    located = list(_questions(path, names))
    documents = {name: Document(name, text) for text, name in names.items()}
    return checked(located, documents, os.fspath(path))


def _questions(path: Path, names: dict[str, str]) -> Iterator[Located]:
    """The questions; `names` gets the id of each new text."""
    first: dict[str, int] = {}
    for row, (number, _, raw) in enumerate(lines(path)):
        where = f"{os.fspath(path)}:{number}"
        fields = Fields(where, parsed(raw, where))
        record = contrastive_example(fields)
        for position, text in enumerate(record.documents):
            if not text.strip():
                raise DataError(f"{where}: field 'docs[{position}]' is empty")
        name = identifier(fields.values, "id", where) if "id" in fields else str(row)
        if name in first:
            raise DataError(f"{where}: id {shown(name)} is also on line {first[name]}")
        first[name] = number
        ids = [names.setdefault(text, str(len(names))) for text in record.documents]
        question = EvaluatedQuestion(
            id=name,
            question=record.question,
            golden_answers=_answers(fields),
            positives=tuple(dict.fromkeys(ids[place] for place in record.positives)),
            candidates=tuple(dict.fromkeys(ids)),
        )
        yield Located(where, question)


def _answers(fields: Fields) -> tuple[str, ...]:
    for name in ("golden_answers", "gold_answer", "answers"):
        if name in fields:
            if isinstance(fields.values[name], list):
                return golden_answers(fields, name)
            return (fields.text(name),)
    answer = answer_of(fields)
    if not answer.strip():
        raise DataError(f"{fields.where}: field 'answer' is empty")
    return (answer,)
