"""Tables of a run of benchmarks, in Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clara.reports.growth import Curve
from clara.reports.results import Measurement, Promise, Results, ratios
from clara.terminal.printing import one_line

_AMOUNTS = ("documents", "queries", "questions", "tokens", "examples")
_COUNTED = {
    "documents": "document",
    "queries": "query",
    "candidates": "candidate",
    "columns": "column",
    "rows": "row",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]|~])")
_BEGINNING = re.compile(r"^(\s*\d*)([#+.)-])(?=#*\s)")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

SUITES = {
    "question": "answers to questions",
    "generate": "generation",
    "compress": "compression",
    "training": "training steps",
    "rank": "search in memory",
    "index": "the index on disk",
    "scoring": "exact search",
    "growth": "growth of cost with size",
    "operators": "operators",
}
"""What the suites of `pytest bench` measure, in words."""

_RATES = {
    "bytes": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")),
    "flops": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1.0, "FLOP/s")),
}
_MOST_OPEN = 30

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; what is in it may come from anywhere.

    Attributes:
        figures: the first column of numbers, which are aligned on the right.
        marks: of each row: "good", "bad", "control" or "".
        note: a sentence below the heading.
        prose: cells hold sentences, or what was meant as such, and not names and figures.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: int = 2
    marks: Sequence[str] = ()
    note: str = ""
    prose: bool = False

    def markdown(self, level: int = 2) -> str:
        """With its heading and note; without both at level 0."""
        rule = ["---" if place < self.figures else "---:" for place in range(len(self.head))]
        lines = [list(map(escaped, self.head)), rule, *(map(escaped, row) for row in self.rows)]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
        if not level:
            return body
        return f"{'#' * level} {escaped(self.title)}\n\n{self.noted()}{body}"

    def noted(self) -> str:
        """The note as a paragraph of Markdown; nothing without one."""
        return f"{escaped(self.note)}\n\n" if self.note else ""

    @property
    def folded(self) -> bool:
        """Whether a page shows it only on demand, since it is long and nothing in it is marked."""
        return len(self.rows) > _MOST_OPEN and not any(self.marks)

    def marked(self) -> list[tuple[str, list[str]]]:
        """Rows with their marks, all safe to print."""
        marks = self.marks or [""] * len(self.rows)
        return [(mark, list(map(one_line, row))) for mark, row in zip(marks, self.rows)]


def escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is, at the beginning of a line too."""
    shown = _MARKDOWN.sub(r"\\\1", one_line(text).translate(_ENTITIES))
    return _BEGINNING.sub(r"\1\\\2", shown)


def suite_name(suite: str) -> str:
    return SUITES.get(suite, suite)


def suite_tables(results: Results) -> dict[str, Table]:
    """A table for each suite by its name, a row for each measurement; no column without figures."""
    suites = dict.fromkeys(each.suite for each in results.measurements)
    return {suite: _suite_table(results, suite) for suite in suites}


def _suite_table(results: Results, suite: str) -> Table:
    measured = [each for each in results.measurements if each.suite == suite]
    first: dict[tuple[Any, ...], Measurement] = {}
    for each in measured:
        if each.samples:
            first.setdefault(each.case_key, each)
    shares = [limit_share(each, results.ceilings) for each in measured]
    head = ["case", "settings", "implementation", "median", "20th to 80th percentile"]
    head += ["relative cost", "throughput", "share of the limit"]
    rows = []
    for each, share in zip(measured, shares):
        rows.append((*_row(each, first.get(each.case_key)), f"{share:.0%}" if share else ""))
    used = [place for place in range(len(head)) if place < 4 or any(row[place] for row in rows)]
    return Table(
        f"All measurements: {suite_name(suite)}",
        tuple(head[place] for place in used),
        [tuple(row[place] for place in used) for row in rows],
        figures=3,
    )


def _row(found: Measurement, first: Measurement | None) -> tuple[str, ...]:
    names = found.case, at(found), found.implementation
    if found.withheld:
        return *names, "not measured", found.withheld, "", ""
    low, high = (amount(value, found.unit) for value in found.spread)
    rates = [f"{short(r)} {q}/s" for q in _AMOUNTS if (r := found.per_second(q)) is not None]
    for quantity, units in _RATES.items():
        if rate := found.per_second(quantity):
            rates.append(_scaled(rate, units))
    beside = ""
    if first is not None and first is not found and (factors := ratios(first, found)):
        beside = f"{times(statistics.median(factors))} × {first.implementation}"
    span = f"{low} to {high}" if len(found.samples) > 1 else ""
    return *names, amount(found.median, found.unit), span, beside, "; ".join(rates)


def limit_share(found: Measurement, ceilings: dict[str, float]) -> float | None:
    """The share that a call reached of the speed its two ceilings allow; None if unknown."""
    pairs = ("bytes", "bandwidth"), ("flops", "matrix_rate")
    if not found.samples or not found.median or found.unit != "s":
        return None
    least = [found.quantities.get(what, 0) / ceilings[c] for what, c in pairs if ceilings.get(c)]
    return max(least, default=0.0) / found.median or None


def growth_table(curves: Iterable[Curve]) -> Table:
    """The exponent between each two neighbouring sizes of each curve."""
    rows = []
    for curve in curves:
        name = curve.name
        for slope in curve.slopes:
            sizes = " to ".join(map(short, slope.sizes))
            costs = " to ".join(amount(cost, curve.unit) for cost in slope.costs)
            rows.append((name, f"{sizes} {curve.of}", costs, f"{slope.exponent:.2f}"))
            name = ""
    note = (
        "The exponent is the slope between two neighbouring sizes in logarithms: 0 means that cost "
        "does not grow, 1 that twice the size costs twice as much, 2 that it costs four times as "
        "much."
    )
    head = "operation", "from size to size", "from cost to cost", "exponent"
    return Table("Exponent between neighbouring sizes", head, rows, note=note)


def promise_table(promises: Sequence[Promise], earlier: Sequence[Promise] | None = None) -> Table:
    """Every promise; with those of an earlier run, what they were there."""
    before = {each.what: each for each in earlier or ()}
    marks = {"kept": "good", "missed": "bad"}
    rows = []
    for each in promises:
        row = [each.what, bounds(each), short(each.measured), each.outcome]
        if earlier is not None:
            old = before.get(each.what)
            row.append(f"{short(old.measured)}, {old.outcome}" if old else "")
        rows.append(tuple(row))
    head = ["promise", "target", "measured", "outcome"]
    head += [] if earlier is None else ["in the earlier run"]
    found = [marks.get(each.outcome, "") for each in promises]
    note = (
        "“Not reachable here” means that a limit which the same run measured is lower than the "
        "target."
    )
    return Table("Promises", tuple(head), rows, figures=1, marks=found, note=note)


def bounds(promise: Promise) -> str:
    """What was promised, in words."""
    named = ("at least", promise.at_least), ("at most", promise.at_most)
    return ", ".join(f"{name} {short(bound)}" for name, bound in named if bound is not None)


def measurement_rows(results: Results) -> list[list[Cell]]:
    """All measurements with their quantities, under a head."""
    quantities = sorted({name for each in results.measurements for name in each.quantities})
    parameters = sorted({name for each in results.measurements for name in each.parameters})
    head = ["suite", "case", "implementation", *parameters, "unit", "median", "p20", "p80"]
    per_call = [f"{name} per call" for name in quantities]
    rows: list[list[Cell]] = [[*head, "samples", *per_call, "withheld"]]
    for each in results.measurements:
        own = [each.parameters.get(name, "") for name in parameters]
        amounts = [each.quantities.get(name, "") for name in quantities]
        names = [each.suite, each.case, each.implementation, *own, each.unit]
        figures = _figures(each) if each.samples else [""] * 3
        rows.append([*names, *figures, len(each.samples), *amounts, each.withheld])
    return rows


def _figures(found: Measurement) -> list[float]:
    return [found.median, *found.spread]


def growth_rows(curves: Iterable[Curve]) -> list[list[Cell]]:
    """Exponents between neighbouring sizes, under a head."""
    head = ["operation", "of", "unit", "from_size", "to_size", "from_cost", "to_cost", "exponent"]
    rows: list[list[Cell]] = [[*head]]
    for curve in curves:
        names = curve.name, curve.of, curve.unit
        for slope in curve.slopes:
            rows.append([*names, *slope.sizes, *slope.costs, slope.exponent])
    return rows


def promise_rows(promises: Iterable[Promise]) -> list[list[Cell]]:
    """Promises under a head."""
    rows: list[list[Cell]] = [["promise", "at_least", "at_most", "measured", "outcome"]]
    for each in promises:
        least, most = ("" if bound is None else bound for bound in (each.at_least, each.at_most))
        rows.append([each.what, least, most, each.measured, each.outcome])
    return rows


def csv_text(rows: Iterable[Iterable[Cell]]) -> str:
    """Lines of a CSV file. A text that a spreadsheet would take for a formula begins with '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([_harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return buffer.getvalue()


def _harmless(text: str) -> str:
    line = one_line(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def at(found: Measurement, but: Iterable[str] = ()) -> str:
    """The settings of a measurement, such as "16x, k = 5, 1,000 documents", without some.

    "size" and "of", which say of what, are one setting.
    """
    kept = {name: value for name, value in found.parameters.items() if name not in but}
    sized = f"{short(kept.pop('size'))} {kept.pop('of')}" if {"size", "of"} <= kept.keys() else ""
    return ", ".join(filter(None, [sized, *(setting(name, value) for name, value in kept.items())]))


def setting(name: str, value: Cell) -> str:
    """One setting in words, such as "16x", "1,000 documents", "float32" or "k = 5"."""
    if name == "rate" and isinstance(value, int | float):
        return f"{short(value)}x"
    if name in _COUNTED and isinstance(value, int | float):
        return f"{short(value)} {_COUNTED[name] if value == 1 else name}"
    if name == "dtype" and isinstance(value, str):
        return value
    return f"{name} = {short(value)}"


def times(ratio: float) -> str:
    """A factor, in two decimals below 10 and in three digits from there on."""
    if 0 < ratio < 0.01:
        return short(ratio)
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.1f}" if ratio < 99.95 else short(ratio)


def amount(value: float, unit: str) -> str:
    """Seconds or bytes in a unit that fits."""
    if unit == "bytes":
        return _scaled(value, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes")))
    return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")))


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    scaled = value / size
    exact = size == 1 and name == "bytes"
    return f"{short(scaled) if exact or scaled >= 100 else _three_digits(scaled)} {name}"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value >= 0.01 else short(value)


def short(value: Cell) -> str:
    """A number in three digits or, from 100 on, without decimals; text as it is."""
    if isinstance(value, str):
        return value
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
