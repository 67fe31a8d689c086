"""The figures of a run, from its lines: means, intervals, tests, marks and the break-even."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from statistics import median
from typing import Any

from clara.evaluation.folder import Line, RunFolder
from clara.evaluation.metrics import SCORES
from clara.evaluation.probes import by_condition
from clara.evaluation.ranking_metrics import ranking_scores
from clara.evaluation.statistics import Interval, mean_interval, median_interval, paired_test
from clara.terminal.printing import say

FORMAT = "clara-evaluation-summary/1"

COMPARED = ("exact_match", "f1")
"""Scores that any two entries are tested on."""

MARGIN = 0.1
"""How far above its best control the exact match of an entry is that reads its memory."""

NOT_FROM_MEMORY = "answers do not come from memory"

_TIMING_RESAMPLES = 1000


def summarise(
    folder: RunFolder, settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What summary.json holds.

    Only questions that every entry has answered count, so that all have the same ones.

    Args:
        settings: those of run.json.
    """
    lines = _answers(folder.answers, [entry["entry"] for entry in settings["entries"]])
    entries = [
        _entry(described, list(lines[described["entry"]].values()))
        for described in settings["entries"]
    ]
    _mark(entries)
    return {
        "format": FORMAT,
        "questions": len(next(iter(lines.values()))) if lines else settings["questions"],
        "documents": settings["documents"],
        "environment": dict(environment),
        "settings": dict(settings),
        "entries": entries,
        "rankers": _rankers(folder.rankings),
        "pairs": list(_pairs(lines)),
        "break_even": list(_break_even(entries, folder.documents)),
    }


def _answers(answers: Iterable[Line], names: Sequence[str]) -> dict[str, dict[str, Line]]:
    """The lines of each entry by question, in one order of questions."""
    found: dict[str, dict[str, Line]] = {name: {} for name in names}
    for line in answers:
        if line["entry"] in found:
            found[line["entry"]][line["question"]] = line
    common = [
        question
        for question in next(iter(found.values()), {})
        if all(question in lines for lines in found.values())
    ]
    return {name: {each: lines[each] for each in common} for name, lines in found.items()}


def _entry(described: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    counted = _present(lines, "vectors")
    vectors = sum(line["vectors"] for line in counted)
    read = sum(len(line["ranked"]) for line in _present(lines, "kept_bytes"))
    kept = sum(line["kept_bytes"] for line in _present(lines, "kept_bytes"))
    conditions = by_condition(lines).get(described["entry"], {})
    scores = {
        name: _interval(mean_interval([line["scores"][name] for line in lines]))
        for name in (*SCORES, *(["rouge_l"] if _has_rouge(lines) else []))
        if lines
    }
    return {
        **described,
        "questions": len(lines),
        "scores": scores,
        "prompt_tokens": _mean(line["prompt_tokens"] for line in lines),
        "text_prompt_tokens": _mean(
            line["text_prompt_tokens"] for line in _present(lines, "text_prompt_tokens")
        ),
        "compression": (
            sum(line["document_tokens"] for line in counted) / vectors if vectors else None
        ),
        "bytes_per_document": kept / read if read else None,
        "documents_read": _mean(len(line["ranked"]) for line in lines),
        "timings_ms": _timings(lines),
        "by_type": _by_type(lines),
        **({"by_condition": conditions} if conditions else {}),
        "reads_memory": None,
    }


def _present(lines: Sequence[Line], field: str) -> list[Line]:
    return [line for line in lines if line.get(field) is not None]


def _has_rouge(lines: Sequence[Line]) -> bool:
    return bool(lines) and all("rouge_l" in line["scores"] for line in lines)


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return sum(given) / len(given) if given else None


def _interval(interval: Interval) -> dict[str, float]:
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def _timings(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """The median of each stage, with its interval.

    Questions of one batch have one time, which was measured once: the interval is that of the
    batches. As many equal times as a batch has questions would make it too narrow.
    """
    stages: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for stage, value in line["timings_ms"].items():
            stages[stage].append(value)
    found = {}
    for stage, values in stages.items():
        measured = [value for value, _ in groupby(values)]
        found[stage] = {"median": median(values)}
        if len(measured) > 1:  # what was measured once has no interval
            interval = median_interval(measured, resamples=_TIMING_RESAMPLES)
            middle = found[stage]["median"]
            found[stage] |= {"low": min(interval.low, middle), "high": max(interval.high, middle)}
    return found


def _by_type(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        if line.get("answer_type") is not None:
            scores[line["answer_type"]].append(line["scores"]["exact_match"])
    return {
        kind: {"questions": len(values), "exact_match": sum(values) / len(values)}
        for kind, values in sorted(scores.items())
    }


def _mark(entries: Sequence[dict[str, Any]]) -> None:
    """Say of each entry that has controls whether it is far enough above the best of them."""
    for entry in entries:
        if entry["control"] is not None:
            continue
        controls = [
            other
            for other in entries
            if (other["control"] == "none" and other["system"] == f"{entry['system']}-none")
            or (
                other["control"] == "shuffled"
                and other["system"] == f"{entry['system']}-shuffled"
                and (other["rate"], other["ranker"]) == (entry["rate"], entry["ranker"])
            )
        ]
        if controls and all("exact_match" in each["scores"] for each in [entry, *controls]):
            best = max(each["scores"]["exact_match"]["mean"] for each in controls)
            above = entry["scores"]["exact_match"]["mean"] - best
            entry["reads_memory"] = round(above, 9) >= MARGIN


def _rankers(rankings: Iterable[Line]) -> list[dict[str, Any]]:
    """How good each ranking is, over the questions whose positives are known."""
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in rankings:
        lines[line["ranker"]].append(line)
    measured = importlib.util.find_spec("ir_measures") is not None
    if lines and not measured:
        say("rankings are not measured: that needs the package ir-measures, of the extra 'eval'")
    return [
        {
            "ranker": name,
            **(_ranking_scores(each) if measured else {}),
            "timings_ms": _timings(each),
        }
        for name, each in lines.items()
    ]


def _ranking_scores(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    scores = ranking_scores(
        {line["question"]: line["ranked"] for line in lines},
        {line["question"]: line["positives"] for line in lines},
    )
    return {
        name: _interval(mean_interval(list(values.values())))
        for name, values in scores.items()
        if values
    }


def _pairs(lines: Mapping[str, Mapping[str, Line]]) -> Iterable[dict[str, Any]]:
    for a, b in combinations(lines, 2):
        for score in COMPARED:
            first, second = (
                [line["scores"][score] for line in lines[name].values()] for name in (a, b)
            )
            if first:
                test = paired_test(first, second)
                yield {
                    "a": a,
                    "b": b,
                    "score": score,
                    "difference": test.difference,
                    "low": test.low,
                    "high": test.high,
                    "p": test.p,
                }


def _break_even(
    entries: Sequence[Mapping[str, Any]], documents: Sequence[Line]
) -> Iterable[dict[str, Any]]:
    """How often a document must be asked about until compressing it beforehand has paid.

    A document is compressed once, in c seconds; an answer then takes m seconds in place of the t
    that reading the text takes. After c / (t - m) questions per document both have cost the same,
    which are all questions divided by all documents. A prefix cache keeps whole lists of documents,
    which serve only questions about the same list: there it is the questions about one list.
    """
    seconds = {line["system"]: line["seconds_per_document"] for line in documents}
    texts = {entry["ranker"]: entry for entry in entries if entry["system"] == "text"}
    for entry in entries:
        system = entry["entry"].partition("+")[0]
        text = texts.get(entry["ranker"])
        if entry["control"] is not None or entry["bytes_per_document"] is None or text is None:
            continue
        ours, theirs = (_total_ms(each) for each in (entry, text))
        cost, what = seconds.get(system), "a document"
        if entry["system"] == "prefix-cache" and cost is not None:
            cost, what = cost * (entry["documents_read"] or 1), "a list of documents"
        needed, why = _questions_per_document(cost, ours, theirs, what)
        yield {
            "entry": entry["entry"],
            "against": text["entry"],
            "questions_per_document": needed,
            "why": why,
        }


def _total_ms(entry: Mapping[str, Any]) -> float | None:
    stages = entry["timings_ms"].values()
    return sum(stage["median"] for stage in stages) if stages else None


def _questions_per_document(
    seconds: float | None, ours: float | None, theirs: float | None, what: str
) -> tuple[float | None, str]:
    if ours is None or theirs is None:
        return None, "no answers were timed"
    if seconds is None:
        return None, "the documents were prepared before this run, so the time is not known"
    shown = f"{ours:.0f} ms from what is kept, {theirs:.0f} ms from text"
    if ours >= theirs:
        return None, f"an answer is not faster: {shown}"
    return (
        seconds / ((theirs - ours) / 1000),
        f"{seconds:.3f} s to prepare {what}; an answer takes {shown}",
    )
