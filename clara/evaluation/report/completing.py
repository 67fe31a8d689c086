"""What a summary leaves out and a report shows, from the lines of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from clara.evaluation.report.lead import leaders
from clara.evaluation.report.records import Entry, Pair, Run, Score
from clara.evaluation.statistics import mean_interval, paired_test

_SCORE = "exact_match"


def completed(run: Run) -> Run:
    """The run, with intervals by answer type, and its best entries compared.

    Entries of different runs are compared in no summary. So what two runs have under one name, such
    as the answers from two indexes, is compared as well, and so are two rates of one model.
    """
    values: dict[str, dict[str, float]] = defaultdict(dict)
    types: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in run.answers:
        if _SCORE in line.scores:
            values[line.entry][line.question] = line.scores[_SCORE]
            types[line.entry, line.answer_type].append(line.scores[_SCORE])
    run = replace(run, entries=[_with_intervals(entry, types) for entry in run.entries])
    wanted = [
        *combinations((each.name for each in leaders(run)), 2),
        *_namesakes(run),
        *_rates(run),
    ]
    new = [
        _compared(a, b, values[a], values[b])
        for a, b in dict.fromkeys(wanted)
        if run.pair(a, b) is None and values[a].keys() & values[b].keys()
    ]
    return replace(run, pairs=[*run.pairs, *new])


def _namesakes(run: Run) -> Iterator[tuple[str, str]]:
    """Names that two runs have both, of which the later one's has the name of its run added."""
    for entry in run.entries:
        first = entry.name.removesuffix(entry.apart)
        if entry.apart and entry.control is None and first in run.by_name:
            yield first, entry.name


def _rates(run: Run) -> Iterator[tuple[str, str]]:
    """Names of entries that differ in nothing but the rate of their memory or their ranking.

    Those of two models or indexes differ in more: nobody could tell which of it a difference is due
    to.
    """
    alike: dict[tuple[str, str | None, str], list[Entry]] = defaultdict(list)
    for entry in run.entries:
        if entry.control is None:
            alike[entry.system, entry.ranker_kind, entry.made].append(entry)
    for entries in alike.values():
        for a, b in combinations(entries, 2):
            if (a.rate, a.ranker_rate) != (b.rate, b.ranker_rate):
                yield a.name, b.name


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
