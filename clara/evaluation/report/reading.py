"""The folder of a run as a report reads it: every file checked, every error with its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clara.data.lines import lines, parsed
from clara.data.values import DataError, shown
from clara.evaluation import summary as summaries
from clara.evaluation.answer_types import NO_ANSWER
from clara.evaluation.folder import (
    ANSWERS,
    DOCUMENTS,
    FORMAT,
    RANKINGS,
    RUN,
    SUMMARY,
    RunFolder,
)
from clara.evaluation.metrics import SCORES
from clara.evaluation.report.fields import Node, read_object
from clara.evaluation.report.records import (
    AnswerLine,
    BreakEven,
    Entry,
    Kept,
    Pair,
    RankerFigures,
    RankingLine,
    Run,
    Score,
    Timing,
)

_OTHER = "other"
_ROUNDED = 1e-6
_MEASURES = ("recall@", "mrr", "ndcg@")  # of rankers; other fields are remarks
_LINES = "files of a run are JSON lines, one JSON object a line"


def read_run(folder: Path) -> Run:
    """Read the folder of a run. Nothing in it is changed.

    What `summary.json` would hold is computed where it is missing, as in a run that was stopped.

    Raises:
        DataError: a file is missing, cut off or foreign, or the files do not belong together; the
            message names the file, the line and the field.
    """
    if not folder.is_dir():
        what = "is a file, not the folder of a run" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}")
    record = read_object(folder / RUN, FORMAT)
    alone = record.node("settings").values.get("entries") == []  # rankers, and no answers
    answers = [] if alone and not (folder / ANSWERS).exists() else _answers(folder / ANSWERS)
    rankings = [_ranking(node) for node in _nodes(folder / RANKINGS)]
    summary = _summary(folder, record)
    environment = record.optional_node("environment").values
    run = Run(
        name=folder.absolute().name,
        settings=dict(record.node("settings").values),
        environment=dict(environment or summary.optional_node("environment").values),
        questions=summary.count("questions"),
        documents=summary.count("documents"),
        entries=[_entry(node) for node in summary.nodes("entries")],
        rankers=[_ranker(node) for node in summary.nodes("rankers")],
        pairs=[_pair(node) for node in summary.nodes("pairs")],
        break_even=[_break_even(node) for node in summary.nodes("break_even")],
        kept=[_kept(node) for node in _nodes(folder / DOCUMENTS)],
        answers=answers,
        rankings=rankings,
    )
    _check_entries(run, folder)
    _check_scores(run, folder)
    _check_pairs(run, folder)
    return run


def _summary(folder: Path, record: Node) -> Node:
    """What `summary.json` holds, or would hold."""
    file = folder / SUMMARY
    if file.exists():
        return read_object(file, summaries.FORMAT)
    settings = record.node("settings")
    settings.count("documents")
    for described in settings.nodes("entries"):
        for name in ("entry", "system"):
            described.text(name)
        for name in ("rate", "ranker", "control"):
            described.get(name)
    # In memory: opened on disk, a folder is mended, and a report leaves it as it is.
    lines_of = RunFolder(None)
    lines_of.answers.add([_summarised(node) for node in _nodes(folder / ANSWERS)])
    lines_of.rankings.add([dict(node.values) for node in _nodes(folder / RANKINGS)])
    lines_of.documents = [dict(node.values) for node in _nodes(folder / DOCUMENTS)]
    environment = record.optional_node("environment").values
    return Node(str(file), summaries.summarise(lines_of, settings.values, environment))


def _summarised(node: Node) -> dict[str, Any]:
    """A line of answers that has what a summary needs."""
    node.number("prompt_tokens")
    for name in SCORES:
        node.node("scores").number(name)
    timings = node.node("timings_ms")
    for name in timings.values:
        timings.number(name)
    return dict(node.values)


def _nodes(path: Path) -> Iterator[Node]:
    """Objects on the lines of a file; none where there is no file."""
    if not path.exists():
        return
    for number, _, raw in lines(path, _LINES):
        place = f"{path}:{number}"
        yield Node(place, parsed(raw, place))


def _answers(path: Path) -> list[AnswerLine]:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    found: list[AnswerLine] = []
    seen: dict[tuple[str, str], str] = {}
    asked: dict[str, tuple[str, AnswerLine]] = {}
    for node in _nodes(path):
        line = _answer(node)
        key = line.entry, line.question
        if key in seen:
            raise DataError(
                f"{node.place}: field 'question': {shown(line.question)} of entry "
                f"{shown(line.entry)} is also at {seen[key]}"
            )
        seen[key] = node.place
        place, first = asked.setdefault(line.question, (node.place, line))
        if (first.text, first.golds) != (line.text, line.golds):
            raise DataError(
                f"{node.place}: field 'question': {shown(line.question)} has another text or "
                f"other golds than at {place}"
            )
        found.append(line)
    return found


def _answer(node: Node) -> AnswerLine:
    rank = node.optional_number("gold_rank")
    if rank is not None and (rank < 1 or rank != int(rank)):
        raise node.wrong("gold_rank", f"must be an integer from 1 on or null, got {rank:g}")
    scores = node.node("scores")
    answerable = node.flag("answerable") is not False
    return AnswerLine(
        entry=node.text("entry"),
        question=node.text("question"),
        text=node.text("text"),
        golds=node.texts("golds"),
        answerable=answerable,
        ranked=node.texts("ranked"),
        gold_rank=None if rank is None else int(rank),
        answer=node.text("answer"),
        scores={name: scores.number(name) for name in scores.values if name in scores},
        answer_type=node.optional_text("answer_type") or (_OTHER if answerable else NO_ANSWER),
    )


def _ranking(node: Node) -> RankingLine:
    return RankingLine(
        node.text("ranker"),
        node.text("question"),
        len(node.texts("ranked")),
        len(node.texts("positives")),
    )


def _entry(node: Node) -> Entry:
    system, _, rate = node.text("system").partition("@")
    control = node.optional_text("control")
    if control not in (None, "shuffled", "none"):
        raise node.wrong("control", f"must be null, 'shuffled' or 'none', got {shown(control)}")
    types = node.optional_node("by_type")
    return Entry(
        name=node.text("entry"),
        system=system,
        rate=node.amount("rate") if "rate" in node else _as_rate(rate),
        ranker=node.optional_text("ranker"),
        control=control,
        questions=node.count("questions"),
        scores=_scores(node.node("scores")),
        by_type={name: _of_type(types.node(name)) for name in types.values},
        prompt_tokens=node.amount("prompt_tokens"),
        text_prompt_tokens=node.amount("text_prompt_tokens"),
        compression=node.amount("compression"),
        bytes_per_document=node.amount("bytes_per_document"),
        timings=_timings(node.optional_node("timings_ms")),
        reads_memory=node.flag("reads_memory"),
        trained=node.flag("trained"),
    )


def _as_rate(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _scores(node: Node) -> dict[str, Score]:
    return {name: _score(node, name) for name in node.values if name in node}


def _score(node: Node, name: str) -> Score:
    """A mean, or an object of a mean and the ends of its interval."""
    if not isinstance(node.values[name], dict):
        return Score(node.number(name))
    inner = node.node(name)
    score = Score(inner.number("mean"), inner.optional_number("low"), inner.optional_number("high"))
    if score.low is not None and score.high is not None and score.low > score.high:
        raise inner.wrong("low", f"is {score.low:g}, above 'high', which is {score.high:g}")
    return score


def _of_type(node: Node) -> tuple[int, Score]:
    node.get("exact_match")
    return node.count("questions"), _score(node, "exact_match")


def _timings(node: Node) -> dict[str, Timing]:
    found = {}
    for name in node.values:
        if name not in node:
            continue
        if isinstance(node.values[name], dict):
            inner = node.node(name)
            median = inner.amount("median")
            if median is None:
                raise inner.wrong("median", "is missing")
            found[name] = Timing(median, inner.amount("low"), inner.amount("high"))
        else:
            found[name] = Timing(node.amount(name) or 0.0)
    return found


def _ranker(node: Node) -> RankerFigures:
    names = [name for name in node.values if name.startswith(_MEASURES)]
    scores = {name: _score(node, name) for name in names if name in node}
    return RankerFigures(node.text("ranker"), scores, _timings(node.optional_node("timings_ms")))


def _pair(node: Node) -> Pair:
    return Pair(
        node.text("a"),
        node.text("b"),
        node.text("score"),
        node.number("difference"),
        node.optional_number("low"),
        node.optional_number("high"),
        node.optional_number("p"),
    )


def _break_even(node: Node) -> BreakEven:
    count = node.amount("questions_per_document")
    why = node.optional_text("why") or ""
    return BreakEven(node.text("entry"), node.text("against"), count, why)


def _kept(node: Node) -> Kept:
    return Kept(
        node.text("system"),
        node.count("documents"),
        node.amount("bytes_per_document"),
        node.amount("seconds_per_document"),
        node.amount("tokens_per_document"),
        node.amount("vectors_per_document"),
    )


def _check_entries(run: Run, folder: Path) -> None:
    """Refuse a summary that is of other lines than those that are there."""
    names = Counter(entry.name for entry in run.entries)
    for position, entry in enumerate(run.entries):
        if names[entry.name] > 1:
            raise DataError(
                f"{folder / SUMMARY}: field 'entries[{position}].entry': "
                f"{shown(entry.name)} is there {names[entry.name]} times"
            )
    counts = Counter(line.entry for line in run.answers)
    for name in counts:
        if name not in names:
            raise DataError(
                f"{folder / SUMMARY}: field 'entries' lacks {shown(name)}, of which "
                "answers.jsonl has lines"
            )
    for entry in run.entries:
        if counts[entry.name] < entry.questions:
            raise DataError(
                f"{folder / ANSWERS}: field 'entry': {counts[entry.name]} lines are of "
                f"{shown(entry.name)}, {SUMMARY} counts {entry.questions} questions"
            )


def _check_scores(run: Run, folder: Path) -> None:
    """Refuse a summary whose scores are not those of the lines."""
    values: dict[str, list[float]] = {}
    for line in run.answers:
        if "exact_match" in line.scores:
            values.setdefault(line.entry, []).append(line.scores["exact_match"])
    for position, entry in enumerate(run.entries):
        own, score = values.get(entry.name, []), entry.exact_match
        if score is None or not own or len(own) != entry.questions:
            continue
        mean = sum(own) / len(own)
        if abs(mean - score.mean) > _ROUNDED:
            raise DataError(
                f"{folder / SUMMARY}: field 'entries[{position}].scores.exact_match' has the mean "
                f"{score.mean:g}, the lines of {ANSWERS} give {mean:g}"
            )


def _check_pairs(run: Run, folder: Path) -> None:
    names = run.by_name
    named = [(f"pairs[{i}].{f}", getattr(p, f)) for i, p in enumerate(run.pairs) for f in "ab"]
    for i, each in enumerate(run.break_even):
        named.append((f"break_even[{i}].entry", each.entry))
    for where, name in named:
        if name not in names:
            raise DataError(f"{folder / SUMMARY}: field '{where}': {shown(name)} is no entry")
