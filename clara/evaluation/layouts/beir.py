"""BEIR's layout (Thakur et al., 2021, arXiv 2104.08663): a corpus, queries and judgements."""

from __future__ import annotations

import csv
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from clara.data.records import Document, identified
from clara.data.values import DataError, shown
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.layouts.located import Documents, Located, Path, checked
from clara.evaluation.layouts.own import by_id

CORPUS = 'a corpus of BEIR is JSON lines, one {"_id": "…", "text": "…", "title"?: "…"} a line'
QUERIES = 'queries of BEIR are JSON lines, one {"_id": "…", "text": "…"} a line'

_SPLIT = "test.tsv"


class Files(NamedTuple):
    """The three files of a data set."""

    corpus: pathlib.Path
    queries: pathlib.Path
    qrels: pathlib.Path


def read(questions: Path, documents: Documents | None) -> Dataset:
    """Read queries that have a positive judgement, and the corpus.

    Queries and documents are JSON lines `{"_id", "text", "title"?}`; judgements are a table of
    three columns between tabs, query, document and score, with a line of headings. A score above 0
    makes a positive: grades are not kept. A document's title, if it has one, is the first line of
    its text too, so that it is compressed and ranked with it, as BEIR's own models have it. There
    are no golden answers: only rankings can be evaluated.

    Args:
        questions: the folder, its "queries.jsonl", or a file of judgements in its folder "qrels".
            The first two take "qrels/test.tsv", or the only file of judgements.
        documents: a corpus in place of the folder's "corpus.jsonl".

    Raises:
        DataError: names file, line and field: a file is missing, a line is malformed, an id occurs
            twice, a judgement names a query or document that is not there, or none is above 0.
    """
    files = files_of(questions)
    queries = {
        name: (line.where, line.text("text"))
        for name, line in identified(files.queries, QUERIES, "_id")
    }
    positives: dict[str, dict[str, str]] = {}
    for judgement in _judgements(files.qrels):
        if judgement.query not in queries:
            raise DataError(
                f"{judgement.where}: field 'query-id' names {shown(judgement.query)}, which is "
                f"not in {files.queries}"
            )
        if judgement.score > 0:
            positives.setdefault(judgement.query, {})[judgement.document] = judgement.where
    found = _corpus(documents, files)
    for judged in positives.values():
        for name, where in judged.items():
            if name not in found:
                raise DataError(
                    f"{where}: field 'corpus-id' names {shown(name)}, an id that none of the "
                    f"{len(found)} documents has"
                )
    located = [
        Located(where, EvaluatedQuestion(name, text, (), positives=tuple(positives[name])))
        for name, (where, text) in queries.items()
        if name in positives
    ]
    if not located:
        raise DataError(f"{files.qrels}: no judgement has a score above 0")
    return checked(located, found, os.fspath(files.queries))


def files_of(questions: Path) -> Files:
    """The files of the data set that a path belongs to, see `read`.

    Raises:
        DataError: there are several files of judgements and none is chosen, or there is none.
    """
    path = pathlib.Path(questions)
    if path.suffix == ".tsv":
        root = path.parent.parent
        return Files(root / "corpus.jsonl", root / "queries.jsonl", path)
    root = path if path.is_dir() else path.parent
    queries = root / "queries.jsonl" if path.is_dir() else path
    tables = sorted((root / "qrels").glob("*.tsv"))
    chosen = next((table for table in tables if table.name == _SPLIT), None)
    if chosen is None and len(tables) == 1:
        chosen = tables[0]
    if chosen is None:
        names = ", ".join(table.name for table in tables)
        reason = f"give one of {names} in place of {path.name}" if tables else "it has no *.tsv"
        raise DataError(f"{root / 'qrels'}: no judgements: there is no {_SPLIT}; {reason}")
    return Files(root / "corpus.jsonl", queries, chosen)


def _corpus(documents: Documents | None, files: Files) -> dict[str, Document]:
    if documents is not None and not isinstance(documents, str | os.PathLike):
        return dict(documents)
    path = files.corpus if documents is None else documents
    return by_id(_documents(path), path)


def _documents(path: Path) -> Iterator[Document]:
    for name, line in identified(path, CORPUS, "_id"):
        title = (line.optional_text("title") or "").strip()
        if title and not line.optional_text("text"):
            yield Document(name, title, title)
        elif title:
            yield Document(name, f"{title}\n{line.text('text')}", title)
        else:
            yield Document(name, line.text("text"))


class _Judgement(NamedTuple):
    where: str
    query: str
    document: str
    score: float


def _judgements(path: pathlib.Path) -> Iterator[_Judgement]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t")
            for row in rows:
                if row and rows.line_num > 1:
                    yield _judgement(row, f"{path}:{rows.line_num}")
                elif row and _score(row[-1]) is not None:
                    raise DataError(
                        f"{path}:1: must be the headings query-id, corpus-id and score, got "
                        f"{shown(' '.join(row))}"
                    )
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not valid UTF-8: byte 0x{error.object[error.start]:02x}"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}: not a table with tabs between columns: {error}") from error


def _judgement(row: list[str], where: str) -> _Judgement:
    if len(row) != 3:
        raise DataError(
            f"{where}: must have the columns query-id, corpus-id and score with tabs between "
            f"them, got {len(row)}"
        )
    query, document, score = row
    number = _score(score)
    if number is None:
        raise DataError(f"{where}: field 'score' must be a number, got {shown(score)}")
    return _Judgement(where, query, document, number)


def _score(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
