"""How good rankings are, by ir-measures, and rankings as files that TREC's tools read.

TREC's tools take the order from the scores, not from the order of lines, and put documents of equal
score in an order of their own. Here the order of a ranking is what counts, so that scores go into
measures and files only after equal ones are told apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from clara.data.values import shown
from clara.errors import ClaraError
from clara.files.writing import replacing

MEASURES = ("recall@1", "recall@3", "recall@5", "recall@20", "mrr", "ndcg@10")
"""The measures, as they are called in tables and files."""


class RankingError(ClaraError, ValueError):
    """A ranking cannot be measured or written: it says of which question, and why."""


def ranking_scores(
    rankings: Mapping[str, Sequence[str]], positives: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Measure rankings by the documents that hold the answers.

    "recall@k" is the share of a question's positives among the first k, "mrr" one by the rank of
    the first positive (0 if none is ranked), "ndcg@10" the normalised discounted cumulative gain of
    the first 10, each positive with a gain of 1.

    Args:
        rankings: ids of documents, best first, by the question's id. A question that is missing
            counts as an empty ranking.
        positives: ids of the documents that hold the answer, by the question's id.

    Returns:
        For each of `MEASURES` the values by the question's id, in the order of `positives`.
        Questions without positives are left out.

    Example:
        >>> ranking_scores({"q": ["other", "right"]}, {"q": ["right"]})["mrr"]
        {'q': 0.5}

    Raises:
        RankingError: ir-measures is not installed, or a ranking holds a document twice.
    """
    measures = _measures()
    judged = {question: set(documents) for question, documents in positives.items() if documents}
    relevant: dict[str, dict[str, int]] = {}
    ordered: dict[str, dict[str, float]] = {}
    for row, (question, wanted) in enumerate(judged.items()):
        ranked = _checked(rankings.get(question, ()), question)
        places = {name: str(rank) for rank, name in enumerate(ranked)}
        # Numbers for ids: the library below takes a NUL for an id's end. The score falls with the
        # rank, so that no two documents are equal.
        ordered[str(row)] = {place: -float(rank) for rank, place in enumerate(places.values())}
        relevant[str(row)] = {places.get(name, f"not ranked: {name!r}"): 1 for name in wanted}
    values = {name: dict.fromkeys(judged, 0.0) for name in MEASURES}
    if judged:
        questions = list(judged)
        names = {measure: name for name, measure in measures.items()}
        for found in _library().iter_calc(list(names), relevant, ordered):
            values[names[found.measure]][questions[int(found.query_id)]] = float(found.value)
    return values


def write_run(
    path: str | os.PathLike[str],
    rankings: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float]] | None = None,
    *,
    name: str = "clara",
) -> None:
    """Write rankings as a TREC run file: lines "question Q0 document rank score name".

    Ranks begin at 1. Ids are written as `trec_id` has them. A score that is not below the one
    before it, as a 32-bit number, is replaced by the next smaller number, so that every tool keeps
    the order. An existing file is replaced at once and whole.

    Args:
        rankings: ids of documents, best first, by the question's id.
        scores: of the documents, in the same order; None gives 1, 1/2, 1/3 and so on.
        name: of the ranker.

    Raises:
        RankingError: there are more or fewer scores than documents, a score is no finite 32-bit
            number, an id is empty, or a ranking holds a document twice.
        OSError: the file cannot be written.
    """
    tag = trec_id(name)
    lines = []
    for question, ranked in rankings.items():
        given = [1 / rank for rank in range(1, len(ranked) + 1)]
        if scores is not None:
            given = list(scores.get(question, ()))
        falling = _falling(given, len(ranked), question)
        for rank, (document, score) in enumerate(zip(_checked(ranked, question), falling), 1):
            lines.append(f"{trec_id(question)} Q0 {trec_id(document)} {rank} {score} {tag}\n")
    _write(path, lines)


def write_qrels(path: str | os.PathLike[str], positives: Mapping[str, Sequence[str]]) -> None:
    """Write positives as a TREC qrels file: lines "question 0 document 1".

    Ids are written as `trec_id` has them. Questions without positives have no line, as no document
    was judged for them. An existing file is replaced at once and whole.

    Raises:
        RankingError: an id is empty.
        OSError: the file cannot be written.
    """
    _write(
        path,
        [
            f"{trec_id(question)} 0 {trec_id(document)} 1\n"
            for question, documents in positives.items()
            for document in dict.fromkeys(documents)
        ],
    )


def trec_id(name: str) -> str:
    """An id as TREC's files can hold it; `id_of_trec` is the way back.

    The columns of those files are separated by blanks. So blanks, characters that are not printable
    and "%" are written as in an address on the web: "sq km" becomes "sq%20km".

    Raises:
        RankingError: the id is empty or UTF-8 cannot hold it.
    """
    if not name:
        raise RankingError("an id in a TREC file must not be empty")
    try:
        return "".join(
            each if each.isprintable() and not each.isspace() and each != "%" else quote(each)
            for each in name
        )
    except UnicodeEncodeError as error:
        raise RankingError(f"id {shown(name)} cannot be written in UTF-8") from error


def id_of_trec(written: str) -> str:
    """The id that `trec_id` wrote so."""
    return unquote(written)


def _falling(scores: Sequence[float], count: int, question: str) -> list[str]:
    """Scores as they are written, each smaller than the one before as a 32-bit number."""
    if len(scores) != count:
        raise RankingError(
            f"question {shown(question)}: {count} documents are ranked, with {len(scores)} scores"
        )
    before, written = np.float32(np.inf), []
    for score in scores:
        with np.errstate(over="ignore"):
            own = np.float32(score)
        this = min(own, np.nextafter(before, np.float32(-np.inf)))
        if not np.isfinite(own) or not np.isfinite(this):
            raise RankingError(
                f"question {shown(question)}: a score must be a finite 32-bit number, got {score}"
            )
        written.append(str(this))
        before = this
    return written


def _checked(ranked: Sequence[str], question: str) -> Sequence[str]:
    if len(set(ranked)) < len(ranked):
        twice = next(name for place, name in enumerate(ranked) if name in ranked[:place])
        raise RankingError(f"question {shown(question)}: document {shown(twice)} is ranked twice")
    return ranked


def _write(path: str | os.PathLike[str], lines: list[str]) -> None:
    with (
        replacing(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.writelines(lines)


def _measures() -> dict[str, Any]:
    """ir-measures' objects by our names."""
    library = _library()
    recall = {f"recall@{k}": library.R @ k for k in (1, 3, 5, 20)}
    return {**recall, "mrr": library.RR, "ndcg@10": library.nDCG @ 10}


def _library() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise RankingError(
            "measuring rankings needs the package ir-measures, of the extra 'eval': "
            "pip install ir-measures"
        ) from error
    return ir_measures
