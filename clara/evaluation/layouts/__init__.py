"""Data sets in the layouts that people have them in, read into `Dataset`."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from clara.data import recognition
from clara.data.lines import lines, parsed
from clara.data.values import DataError
from clara.evaluation.dataset import Dataset
from clara.evaluation.layouts import beir, flashrag, own, ranking, squad
from clara.evaluation.layouts.located import Documents, Path

__all__ = ["LAYOUTS", "Documents", "Layout", "read_dataset", "recognised_layout"]

Layout = Literal["clara", "flashrag", "squad", "beir", "ranking"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_NAMES = {
    "clara": "our own JSON lines",
    "flashrag": "FlashRAG's layout",
    "squad": "SQuAD's JSON",
    "beir": "BEIR's layout",
    "ranking": "records with documents to rank",
}
_EXPECTED = (
    'questions are JSON lines {"id", "question", "golden_answers"} (ours and FlashRAG\'s) or '
    '{"question", "docs", "answer"}, SQuAD\'s JSON, or a folder of BEIR'
)
_SQUAD = re.compile(rb'\s*\{\s*("version"\s*:\s*("[^"]*"|[\d.]+)\s*,\s*)?"data"\s*:\s*\[')


def read_dataset(
    questions: Path,
    documents: Documents | None = None,
    layout: Layout | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> Dataset:
    """Read questions and documents.

    Args:
        questions: a file, or a folder of BEIR.
        documents: a corpus in the same layout, or documents by their ids: an empty mapping for
            questions that are asked without any. None where the questions bring their documents:
            SQuAD's, ranking records, and BEIR's with a corpus beside them.
        layout: None to recognise it by what the file begins with. "clara" is described in
            `clara.evaluation.layouts.own`, the others in the modules of their names.
        say: is called with one line that says what was taken for what.

    Example:
        >>> dataset = read_dataset("xquad.de.json", say=print)  # doctest: +SKIP
        xquad.de.json: SQuAD's JSON: 1190 questions, 240 documents

    Raises:
        DataError: one line that names file, line and field; see the modules of the layouts.
        ValueError: there is no such layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    chosen = layout or recognised_layout(questions)
    dataset = _read(chosen, questions, documents)
    if say is not None:
        corpus = "" if documents is None or isinstance(documents, Mapping) else f" from {documents}"
        say(
            f"{os.fspath(questions)}: {_NAMES[chosen]}: {len(dataset.questions)} questions, "
            f"{len(dataset.documents)} documents{corpus}"
        )
    return dataset


def recognised_layout(questions: Path) -> Layout:
    """The layout of a file of questions, or of a folder, by what it begins with.

    Raises:
        DataError: it is none that we know.
    """
    path = pathlib.Path(questions)
    if path.is_dir():
        if (path / "queries.jsonl").is_file():
            return "beir"
        raise DataError(f"{path}: is a folder without queries.jsonl; {_EXPECTED}")
    if path.suffix == ".tsv" and path.parent.name == "qrels":
        return "beir"
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or device; say which layout it has, or use a file")
    if _is_squad(path):
        return "squad"
    number, _, raw = next(lines(path, _EXPECTED), (0, 0, b""))
    if not raw:
        raise DataError(f"{path}: holds no questions; {_EXPECTED}")
    record = parsed(raw, f"{path}:{number}")
    if "_id" in record:
        return "beir"
    if "data" in record:
        return "squad"
    if "docs" in record:
        return "ranking"
    if "question" not in record:
        raise DataError(f"{path}:{number}: field 'question' is missing; {_EXPECTED}")
    return "flashrag" if {"metadata", "choices"} & record.keys() else "clara"


def _is_squad(path: pathlib.Path) -> bool:
    """Whether a file begins as SQuAD's do; they are often one line of many megabytes."""
    try:
        with path.open("rb") as file:
            head = file.read(recognition.HEAD).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return bool(_SQUAD.match(head)) or (
        path.suffix == ".json" and b'"paragraphs"' in head and b'"qas"' in head
    )


def _read(layout: Layout, questions: Path, documents: Documents | None) -> Dataset:
    if layout == "clara":
        return own.read(questions, documents)
    if layout == "flashrag":
        return flashrag.read(questions, documents)
    if layout == "beir":
        return beir.read(questions, documents)
    if documents is not None:
        raise DataError(
            f"{os.fspath(questions)}: {_NAMES[layout]} bring their own documents; leave out "
            "the others"
        )
    return squad.read(questions) if layout == "squad" else ranking.read(questions)
