"""Training data of every stage from a corpus with questions, without a language model."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.data.records import Document, Question, read_documents, read_questions, write_jsonl
from clara.data.values import DataError

ANSWERED_FROM = 5
"""Documents of a record of instruct.jsonl."""

# Split of the questions, and the ending of the files that are made of it.
_SPLITS = (("train", ""), ("validation", "_validation"))


def write_stage_files(folder: str | os.PathLike[str], candidates: int = 20) -> dict[str, int]:
    """Write pretrain.jsonl, instruct.jsonl and end_to_end.jsonl beside a corpus with questions.

    The folder holds docs.jsonl, questions.train.jsonl and questions.validation.jsonl. From the
    latter come the same files with the ending _validation.

    Args:
        candidates: documents of a record of end_to_end.jsonl, at least 1.

    Returns:
        Records by file name.

    Raises:
        DataError: a file cannot be read, or a question names a document that is not there.
        OSError: a file cannot be written.
    """
    place = Path(folder)
    documents = {each.id: each for each in read_documents(place / "docs.jsonl")}
    counts: dict[str, int] = {}
    for split, ending in _SPLITS:
        questions = list(read_questions(place / f"questions.{split}.jsonl"))
        unknown = [n for q in questions for n in q.positives if n not in documents]
        if unknown:
            raise DataError(f"questions.{split}.jsonl: no document {unknown[0]!r}")
        negatives = Negatives(list(documents), seed=0)
        for name, records in (
            ("pretrain", pretraining_records(documents, questions)),
            ("instruct", question_records(documents, questions, negatives, ANSWERED_FROM, seed=1)),
            ("end_to_end", question_records(documents, questions, negatives, candidates, seed=2)),
        ):
            kept = list(records)
            write_jsonl(place / f"{name}{ending}.jsonl", kept)
            counts[f"{name}{ending}.jsonl"] = len(kept)
    return counts


def pretraining_records(
    documents: Mapping[str, Document], questions: Sequence[Question]
) -> Iterator[dict[str, Any]]:
    """All questions of a document in one record."""
    asked = defaultdict(list)
    for question in questions:
        for name in question.positives[:1]:
            asked[name].append(question)
    for name, found in asked.items():
        yield {
            "data_type": "qa",
            "question": [each.question for each in found],
            "answers": [each.golden_answers[0] for each in found],
            "docs": [documents[name].text],
        }


class Negatives:
    """Hard negatives: documents that resemble the right one, by their ids `subject/section/…`."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._names = list(names)
        self._near: dict[str, list[str]] = defaultdict(list)
        self._random = random.Random(seed)
        for name in names:
            for key in self._keys(name):
                self._near[key].append(name)

    @staticmethod
    def _keys(name: str) -> list[str]:
        """The subject and the section of a document. Documents that share one read alike."""
        return [f"{place}:{part}" for place, part in enumerate(name.split("/")[:2])]

    def of(self, positives: Sequence[str], count: int) -> list[str]:
        """`count` documents that are not positives, the most similar ones first."""
        near = [n for key in self._keys(positives[0]) for n in self._draw(self._near[key], count)]
        every = [*near, *self._draw(self._names, 2 * count)]
        return [n for n in dict.fromkeys(every) if n not in positives][:count]

    def _draw(self, names: Sequence[str], count: int) -> list[str]:
        return self._random.sample(names, min(len(names), (count + 1) // 2))


def question_records(
    documents: Mapping[str, Document],
    questions: Sequence[Question],
    negatives: Negatives,
    candidates: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Each question with its documents in random order, and the positions of the right ones."""
    order = random.Random(seed)
    for question in questions:
        positives = list(question.positives)[:candidates]
        if not positives:
            continue
        names = [*positives, *negatives.of(positives, candidates - len(positives))]
        order.shuffle(names)
        yield {
            "question": question.question,
            "docs": [documents[name].text for name in names],
            "pos_index": [place for place, name in enumerate(names) if name in positives],
            "answer": question.golden_answers[0],
            "golden_answers": list(question.golden_answers),
        }
