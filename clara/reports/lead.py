"""The sentences at the beginning of a report: what was measured, where, and the main result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from clara.reports.comparison import Change
from clara.reports.results import (
    OUTCOMES,
    REFERENCE_WAY,
    Measurement,
    Results,
    pairs,
    ratios,
    usual,
)
from clara.reports.tables import SUITES, amount, setting, suite_name, times

_MAIN_RATE = 16


def lead(results: Results, changes: Sequence[Change] | None = None) -> list[str]:
    """What was measured and where, the main result, and how promises and comparison came out.

    Args:
        changes: against an earlier run, where there is one.
    """
    found = [_measured(results), _main_result(results), _promises(results)]
    if changes is not None:
        found.append(_compared(changes))
    return [sentence for sentence in found if sentence]


def _measured(results: Results) -> str:
    found = {each.suite for each in results.measurements if each.samples}
    suites = [*filter(found.__contains__, SUITES), *sorted(found - SUITES.keys())]
    if not suites:
        return "This file holds no measurements."
    known = results.environment
    where = f" on {known['device']}" if known.get("device") else ""
    if known.get("threads"):
        where += f" with {known['threads']} thread{'s' if known['threads'] != 1 else ''}"
    when = f", {known['date']}" if known.get("date") else ""
    commit = f", commit {known['commit']}" if known.get("commit") else ""
    return f"Measured{where}{when}{commit}: {_listed([suite_name(name) for name in suites])}."


def _main_result(results: Results) -> str:
    """The first of these that was measured: answers, compression, training, anything else."""
    return (
        _answers(results)
        or _beside(results, "compress", "throughput", "compressing documents")
        or _beside(results, "training", "pretraining step", "a pretraining step")
        or _fastest(results)
    )


def _answers(results: Results) -> str:
    measured = usual(results.of("question", "time to first token"))
    found = _both(measured, "memory", "text")
    if not found:
        return ""
    own, other = _at_main_rate(found)
    sentence = (
        f"{_rate(own)}the first token of an answer takes {amount(own.median, 's')} from memory "
        f"tokens and {amount(other.median, 's')} from the documents' text: memory is "
        f"{_times_as_fast(own, other)}."
    )
    return sentence[0].upper() + sentence[1:]


def _beside(results: Results, suite: str, case: str, words: str) -> str:
    found = _both(results.of(suite, case), "ours", REFERENCE_WAY)
    if not found:
        return ""
    own, other = _at_main_rate(found)
    sentence = (
        f"{_rate(own)}{words} takes {amount(own.median, 's')}; the reference implementation's way "
        f"takes {amount(other.median, 's')}: ours is {_times_as_fast(own, other)}."
    )
    return sentence[0].upper() + sentence[1:]


def _fastest(results: Results) -> str:
    """In how many cases ours takes the least time."""
    cases: dict[tuple[object, ...], dict[str, float]] = {}
    for each in results.measurements:
        if each.samples and each.unit == "s":
            cases.setdefault(each.case_key, {})[each.implementation] = each.median
    contested = [found for found in cases.values() if "ours" in found and len(found) > 1]
    if not contested:
        return ""
    first = sum(found["ours"] == min(found.values()) for found in contested)
    return f"Ours is the fastest in {first} of the {len(contested)} cases with other measurements."


def _both(
    measured: Sequence[Measurement], ours: str, theirs: str
) -> list[tuple[Measurement, Measurement]]:
    """Timed measurements of two implementations in the same case."""
    return [
        (own, other)
        for own, other in pairs(measured, ours, theirs)
        if other is not None and ratios(own, own)
    ]


def _at_main_rate(
    found: Sequence[tuple[Measurement, Measurement]],
) -> tuple[Measurement, Measurement]:
    chosen = [pair for pair in found if pair[0].parameters.get("rate") == _MAIN_RATE]
    return (chosen or found)[0]


def _rate(found: Measurement) -> str:
    rate = found.parameters.get("rate")
    return "" if rate is None else f"At {setting('rate', rate)} compression, "


def _times_as_fast(own: Measurement, other: Measurement) -> str:
    return f"{times(statistics.median(ratios(own, other)))} times as fast"


def _promises(results: Results) -> str:
    if not results.promises:
        return ""
    counts = dict.fromkeys(OUTCOMES, 0)
    for each in results.promises:
        counts[each.outcome] += 1
    said = {
        "kept": f"{counts['kept']} of {len(results.promises)} promises are kept",
        "missed": f"missed: {counts['missed']}",
        "not reachable here": f"not reachable on this machine: {counts['not reachable here']}",
    }
    return f"{'; '.join(text for name, text in said.items() if counts[name] or name == 'kept')}."


def _compared(changes: Sequence[Change]) -> str:
    if not changes:
        return "The earlier run has no measurement in common with this one."
    counts = dict.fromkeys(("slower", "faster", "same"), 0)
    for change in changes:
        counts[change.verdict] += 1
    return (
        f"Compared with the earlier run, {counts['slower']} of {len(changes)} measurements are "
        f"slower or larger, {counts['faster']} are faster or smaller, and {counts['same']} are the "
        "same within noise."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
