"""Small data sets in every layout, for tests: towns, mills and rivers that do not exist."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """Write each record as JSON, or as it is if it is a string, on a line of its own."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def edited(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a record; None removes a field."""
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


OWN_QUESTIONS: list[dict[str, Any]] = [
    {
        "id": "q1",
        "question": "How long is the Alder?",
        "golden_answers": ["12 km", "twelve km", "12 km"],
        "positives": ["alder"],
        "candidates": ["mill", "alder", "mill"],
    },
    {"id": 2, "question": "Who owns the mill?", "golden_answers": ["Ida Marsh"]},
    {"id": "q3", "question": "When did it burn?", "answerable": False, "candidates": ["mill"]},
]
OWN_DOCUMENTS: list[dict[str, Any]] = [
    {"id": "alder", "contents": "The Alder is 12 km long.", "title": "Alder"},
    {"id": "mill", "contents": "Ida Marsh owns the mill."},
]

FLASHRAG_QUESTIONS: list[dict[str, Any]] = [
    {
        "id": "test_0",
        "question": "how long is the alder",
        "golden_answers": ["12 km"],
        "metadata": {"type": "bridge"},
    },
    {
        "id": "test_1",
        "question": "Which is a river?",
        "golden_answers": [1],
        "choices": ["the mill", "the Alder"],
        "metadata": {},
    },
]
FLASHRAG_CORPUS: list[dict[str, Any]] = [
    {"id": "0", "contents": '"Alder"\nThe Alder is 12 km long.'},
    {"id": "1", "text": "Ida Marsh owns the mill.", "title": "Mill"},
]

SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Alder",
            "paragraphs": [
                {
                    "context": "The Alder is 12 km long.",
                    "qas": [
                        {
                            "id": "s1",
                            "question": "How long is the Alder? ",
                            "answers": [
                                {"text": "12 km", "answer_start": 13},
                                {"text": "12 km", "answer_start": 13},
                                {"text": "12 km long", "answer_start": 13},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "s2",
                            "question": "How deep is the Alder?",
                            "answers": [],
                            "plausible_answers": [{"text": "12 km", "answer_start": 13}],
                            "is_impossible": True,
                        },
                    ],
                },
                {"context": "It rises at Old Ford.", "qas": []},
            ],
        },
        {
            "title": "Alder",
            "paragraphs": [
                {
                    "context": "Ida Marsh owns the mill.",
                    "qas": [
                        {
                            "id": "s3",
                            "question": "Who owns the mill?",
                            "answers": [{"text": "Ida Marsh", "answer_start": 0}],
                        }
                    ],
                },
                {
                    "context": "It rises at Old Ford.",
                    "qas": [
                        {
                            "id": "s4",
                            "question": "Where does it rise?",
                            "answers": [{"text": "Old Ford", "answer_start": 12}],
                        }
                    ],
                },
            ],
        },
    ],
}

BEIR_CORPUS: list[dict[str, Any]] = [
    {"_id": "d1", "title": "Alder", "text": "The Alder is 12 km long.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "Ida Marsh owns the mill."},
    {"_id": "d3", "title": "Old Ford", "text": ""},
]
BEIR_QUERIES: list[dict[str, Any]] = [
    {"_id": "1", "text": "length of the Alder", "metadata": {}},
    {"_id": "2", "text": "owner of the mill"},
    {"_id": "3", "text": "judged only in training"},
]
BEIR_QRELS = ["query-id\tcorpus-id\tscore", "2\td2\t2", "1\td1\t1", "1\td2\t0", "1\td3\t1"]

RANKING: list[dict[str, Any]] = [
    {
        "question": "How long is the Alder?",
        "docs": ["Ida Marsh owns the mill.", "The Alder is 12 km long.", "It rises at Old Ford."],
        "pos_index": [1],
        "answer": "12 km",
    },
    {
        "id": "owner",
        "question": "Who owns the mill?",
        "docs": ["It rises at Old Ford.", "Ida Marsh owns the mill."],
        "pos_index": [1],
        "answer": "Marsh, I think",
        "golden_answers": ["Ida Marsh", "Marsh"],
    },
]


def write_own(folder: Path) -> tuple[Path, Path]:
    return (
        write_lines(folder / "questions.jsonl", OWN_QUESTIONS),
        write_lines(folder / "documents.jsonl", OWN_DOCUMENTS),
    )


def write_flashrag(folder: Path) -> tuple[Path, Path]:
    return (
        write_lines(folder / "test.jsonl", FLASHRAG_QUESTIONS),
        write_lines(folder / "corpus.jsonl", FLASHRAG_CORPUS),
    )


def write_squad(folder: Path, *, indent: int | None = None) -> Path:
    path = folder / "xquad.en.json"
    path.write_text(json.dumps(SQUAD, indent=indent), encoding="utf-8")
    return path


def write_beir(folder: Path) -> Path:
    write_lines(folder / "corpus.jsonl", BEIR_CORPUS)
    write_lines(folder / "queries.jsonl", BEIR_QUERIES)
    write_lines(folder / "qrels" / "test.tsv", BEIR_QRELS)
    write_lines(folder / "qrels" / "train.tsv", [BEIR_QRELS[0], "3\td3\t1"])
    return folder


def write_ranking(folder: Path) -> Path:
    return write_lines(folder / "ranking.jsonl", RANKING)
