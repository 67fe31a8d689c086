"""Results in lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from clara.errors import reason
from clara.reports.results import Measurement, Promise, Results
from clara.reports.tables import amount, at, short


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def measurement_line(found: Measurement) -> str:
    """One measurement, such as "compress: throughput, 16x: ours 200 ms (3 rounds)"."""
    rounds = f" ({len(found.samples)} rounds)" if len(found.samples) > 1 else ""
    return f"{_case(found)}: {_figure(found)}{rounds}"


def result_lines(results: Results) -> list[str]:
    """A line for each case, with the medians of its implementations; then the promises."""
    cases: dict[str, list[str]] = {}
    for each in results.measurements:
        cases.setdefault(_case(each), []).append(_figure(each))
    lines = [f"{case}: {'; '.join(figures)}" for case, figures in cases.items()]
    lines += results.environment.get("backbones", [])
    lines += promise_lines(results.promises)
    if results.environment.get("dry_run"):
        lines.append("A dry run on CPU: the times mean nothing.")
    return lines


def promise_lines(promises: Sequence[Promise]) -> list[str]:
    """Every promise, and how many were kept."""
    kept = sum(each.outcome == "kept" for each in promises)
    counted = [f"{kept} of {len(promises)} promises are kept"] if promises else []
    return [*map(str, promises), *counted]


def first_line(error: BaseException) -> str:
    """What a failure says, on one line."""
    return f"{type(error).__name__}: {reason(error, 300, first_line=True)}"


def _case(found: Measurement) -> str:
    return ", ".join(filter(None, [f"{found.suite}: {found.case}", at(found)]))


def _figure(found: Measurement) -> str:
    if found.withheld:
        return f"{found.implementation} withheld, {found.withheld}"
    speed = found.per_second("documents")
    documents = f" ({short(speed)} documents/s)" if speed is not None else ""
    return f"{found.implementation} {amount(found.median, found.unit)}{documents}"
