"""What is promised of operators on a GPU: each promise is as good as the worst of its cases."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.turns import median_ratio
from clara.reports.results import Promise

from .case import Case, Target
from .suite import Timed


@dataclass(frozen=True)
class Figure:
    """What a case has of a target; None where it could not be measured."""

    case: Case
    target: Target
    measured: float | None


def figures(case: Case, timed: Timed | None, ceilings: Mapping[str, float]) -> list[Figure]:
    """One for each target of a case; `timed` is None where it has no figures."""
    return [
        Figure(case, target, None if timed is None else _measured(target, case, timed, ceilings))
        for target in case.targets
    ]


def judged(found: Iterable[Figure]) -> list[tuple[Promise, str]]:
    """Promises, each with the name of its worst case.

    A promise that a case has no number for is only judged if another case misses it.
    """
    groups: dict[tuple[str, str], list[Figure]] = {}
    for each in found:
        groups.setdefault((each.case.operator, each.target.what), []).append(each)
    promises = []
    for (operator, what), group in groups.items():
        target = group[0].target
        numbers = [(each.measured, each.case) for each in group if each.measured is not None]
        if not numbers:
            continue
        worst = (min if target.at_least is not None else max)(numbers, key=lambda pair: pair[0])
        bounds = target.at_least, target.at_most
        promise = Promise.judged(f"{operator}, {what}", worst[0], *bounds)
        if promise.missed or len(numbers) == len(group):
            promises.append((promise, worst[1].full_name))
    return promises


def _measured(
    target: Target, case: Case, timed: Timed, ceilings: Mapping[str, float]
) -> float | None:
    ours, theirs = timed.seconds["ours"], timed.seconds.get(target.of)
    median = statistics.median(ours)
    if target.quantity == "bandwidth":
        return case.bytes / median / ceilings["bandwidth"]
    if target.quantity == "matrix rate":
        return case.flops / median / ceilings["matrix_rate"]
    if target.quantity == "ratio" and theirs:
        return median_ratio(theirs, ours)
    if target.quantity == "beyond" and theirs:
        beyond = median - statistics.median(theirs)
        return beyond / (case.bytes / ceilings["bandwidth"])
    if target.quantity == "extra memory" and "ours" in timed.extra_bytes:
        return timed.extra_bytes["ours"] / case.candidate_bytes
    return None
