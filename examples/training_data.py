"""Make training data for every stage from a corpus with questions.

    python examples/factbook.py --output data
    python examples/training_data.py --data data

The script reads docs.jsonl and questions.train.jsonl and writes

    pretrain.jsonl     the questions and answers of each document
    instruct.jsonl     each question with the documents to answer it from
    end_to_end.jsonl   each question with its candidates

From questions.validation.jsonl it writes the same files with the ending _validation. It uses no
language model. `clara synthesize` uses one, and writes more questions and paraphrases.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.data import Document, Question, read_documents, read_questions, write_jsonl


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


def write(folder: Path, split: str, ending: str, candidates: int, documents: Any) -> None:
    questions = list(read_questions(folder / f"questions.{split}.jsonl"))
    unknown = [n for q in questions for n in q.positives if n not in documents]
    if unknown:
        raise ValueError(f"questions.{split}.jsonl: no document {unknown[0]!r}")
    negatives = Negatives(list(documents), seed=0)
    for name, records in (
        ("pretrain", pretraining_records(documents, questions)),
        ("instruct", question_records(documents, questions, negatives, 5, seed=1)),
        ("end_to_end", question_records(documents, questions, negatives, candidates, seed=2)),
    ):
        file = folder / f"{name}{ending}.jsonl"
        kept = list(records)
        write_jsonl(file, kept)
        print(f"{file.name}: {len(kept)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make training data from questions.")
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path, required=True, help="with documents and questions"
    )
    parser.add_argument(
        "--candidates", type=int, default=20, help="documents per question (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.candidates < 1:
        parser.error("--candidates must be at least 1")
    try:
        documents = {each.id: each for each in read_documents(arguments.data / "docs.jsonl")}
        for split, ending in (("train", ""), ("validation", "_validation")):
            write(arguments.data, split, ending, arguments.candidates, documents)
    except (OSError, ValueError) as error:
        sys.exit(f"training_data: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
