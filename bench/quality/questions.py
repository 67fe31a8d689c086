"""Held-out questions of the task, as files that `clara evaluate` reads."""

from __future__ import annotations

from pathlib import Path

from bench.learning import task
from clara.data import write_jsonl
from clara.files.writing import new_folder

QUESTIONS = "questions.jsonl"
DOCUMENTS = "documents.jsonl"


def write_questions(folder: Path, count: int, seed: int) -> None:
    """Write questions about sheets whose names are never trained on, and these sheets.

    Each question has its own candidates, of different names. Another question may have a sheet of
    the same name with other facts, so that the right one can only be told among the candidates.

    Args:
        folder: to be made; it holds both files or does not exist.
        count: of questions.
        seed: other seeds draw other sheets and questions.
    """
    rows = task.held_out(count, seed)
    texts = dict.fromkeys(text for row in rows for text in row["docs"])
    names = {text: f"sheet-{number}" for number, text in enumerate(texts)}
    with new_folder(folder) as made:
        write_jsonl(
            made / DOCUMENTS, ({"id": name, "contents": text} for text, name in names.items())
        )
        write_jsonl(
            made / QUESTIONS,
            (
                {
                    "id": f"question-{number}",
                    "question": row["question"],
                    "golden_answers": [row["answer"]],
                    "positives": [names[row["docs"][place]] for place in row["pos_index"]],
                    "candidates": [names[text] for text in row["docs"]],
                }
                for number, row in enumerate(rows)
            ),
        )
