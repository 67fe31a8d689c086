"""What a summary leaves out and a report shows, from the lines of the run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import combinations

from clara.evaluation.report.lead import leaders
from clara.evaluation.report.records import Entry, Pair, Run, Score
from clara.evaluation.statistics import mean_interval, paired_test

_SCORE = "exact_match"


def completed(run: Run) -> Run:
    """The run, with intervals by answer type, and its best entries compared.

    Entries of different runs are compared in no summary.
    """
    values: dict[str, dict[str, float]] = defaultdict(dict)
    types: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in run.answers:
        if _SCORE in line.scores:
            values[line.entry][line.question] = line.scores[_SCORE]
            types[line.entry, line.answer_type].append(line.scores[_SCORE])
    run = replace(run, entries=[_with_intervals(entry, types) for entry in run.entries])
    new = [
        _compared(a.name, b.name, values[a.name], values[b.name])
        for a, b in combinations(leaders(run), 2)
        if run.pair(a.name, b.name) is None and values[a.name].keys() & values[b.name].keys()
    ]
    return replace(run, pairs=[*run.pairs, *new])


def _with_intervals(entry: Entry, values: dict[tuple[str, str], list[float]]) -> Entry:
    by_type = dict(entry.by_type)
    for name, (count, score) in entry.by_type.items():
        own = values.get((entry.name, name), [])
        if score.low is None and len(own) == count > 0:
            found = mean_interval(own)
            by_type[name] = count, Score(score.mean, found.low, found.high)
    return replace(entry, by_type=by_type)


def _compared(a: str, b: str, first: dict[str, float], second: dict[str, float]) -> Pair:
    """Two entries on the questions that both have answered."""
    common = [question for question in first if question in second]
    test = paired_test([first[each] for each in common], [second[each] for each in common])
    return Pair(a, b, _SCORE, test.difference, test.low, test.high, test.p)
