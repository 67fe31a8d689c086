"""One page of tables and pictures from files of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment

from clara.benchmarks import tables
from clara.benchmarks.comparison import (
    Change,
    ceiling_name,
    compare,
    differences,
    only_in_one,
)
from clara.benchmarks.growth import curves
from clara.benchmarks.page import PAGE
from clara.benchmarks.plots import draw_all
from clara.benchmarks.results import Measurement, Results, ResultsError, read_results
from clara.benchmarks.tables import Cell, Table, amount, at, csv_text, escaped, short
from clara.cli.output import one_line

NO_PICTURES = "No pictures: drawing needs the package matplotlib (pip install matplotlib)."


@dataclass
class Report:
    """What the page says, besides pictures.

    Attributes:
        notes: what a reader should know before any figure.
        summary, details: tables above and below the pictures.
        changes: of the measurements that two runs have in common.
        files: further files by name: tables as CSV.
    """

    title: str
    notes: list[str]
    summary: list[Table]
    details: list[Table]
    files: dict[str, str]
    changes: list[Change] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        return sum(change.verdict == verdict for change in self.changes)


def write_report(files: Sequence[Path], output: Path) -> Report:
    """Make `report.html`, `report.md`, tables as CSV, and the pictures of the last file.

    With two files, the second is compared with the first and what changed is marked. Everything is
    made before anything is moved to the folder, where it replaces what an earlier report left.

    Args:
        files: one or two files of results, the later one last.
        output: folder, made if it is missing.

    Raises:
        ResultsError: a file is none of results, there are more than two, or `output` is no folder.
    """
    if not 1 <= len(files) <= 2:
        raise ResultsError(f"a report is of one file of results or compares two, got {len(files)}")
    *earlier, results = [read_results(file) for file in files]
    report = _report(results, earlier[0] if earlier else None)
    if output.exists() and not output.is_dir():
        raise ResultsError(f"{output}: is no folder")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".report-", dir=output) as folder:
        made = Path(folder)
        try:
            pictures = draw_all(results, made)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            pictures = []
            report.notes.append(NO_PICTURES)
        for name, content in {**report.files, **_pages(report, pictures)}.items():
            (made / name).write_text(content, encoding="utf-8")
        for path in sorted(made.iterdir()):
            os.replace(path, output / path.name)
    return report


def _report(results: Results, earlier: Results | None) -> Report:
    grown = curves(results)
    summary, details = [_environment(results, earlier)], []
    notes: list[str] = []
    changes: list[Change] = []
    files: dict[str, list[list[Cell]]] = {"results.csv": tables.measurement_rows(results)}
    if earlier is not None:
        changes = compare(earlier, results)
        notes = _differences(earlier, results)
        summary.append(_changes(changes, notes))
        files["comparison.csv"] = _change_rows(changes)
        alone = [(*_names(found), why) for found, why in only_in_one(earlier, results)]
        if alone:
            head = ("case", "at", "implementation", "why")
            summary.append(Table("Not compared", head, alone, figures=4))
    if results.promises:
        old = None if earlier is None else earlier.promises
        summary.append(tables.promise_table(results.promises, old))
        files["promises.csv"] = tables.promise_rows(results.promises)
    if grown:
        details.append(tables.growth_table(grown))
        files["growth.csv"] = tables.growth_rows(grown)
    if not results.measurements:
        notes.append("The file holds no measurements.")
    details += tables.suite_tables(results)
    texts = {name: csv_text(rows) for name, rows in files.items()}
    return Report(_title(results), notes, summary, details, texts, changes)


def _pages(report: Report, pictures: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The page, and the same in Markdown."""
    page = Environment(autoescape=True).from_string(PAGE)
    html = page.render(report=report, pictures=pictures, one_line=one_line)
    parts = [f"# CLaRa benchmarks\n\n{escaped(report.title)}\n"]
    parts += [f"{escaped(note)}\n" for note in report.notes]
    parts += [table.markdown() for table in report.summary]
    parts += [f"![{caption}]({name})\n" for name, caption in pictures]
    parts += [table.markdown() for table in report.details]
    return {"report.html": html, "report.md": "\n".join(parts)}


def _title(results: Results) -> str:
    known = results.environment
    parts = [known.get("device"), known.get("commit"), known.get("date")]
    return ", ".join(str(part) for part in parts if part) or "results"


def _environment(results: Results, earlier: Results | None) -> Table:
    """What figures depend on; of an earlier run beside it."""
    runs = [_details(run) for run in (earlier, results) if run is not None]
    names = dict.fromkeys(name for run in reversed(runs) for name in run)
    rows = [(name, *(run.get(name, "") for run in runs)) for name in names]
    head = ("", "earlier run", "this run") if earlier is not None else ("", "")
    return Table("Environment", head, rows, figures=3)


def _details(results: Results) -> dict[str, str]:
    found = {name: _plain(value) for name, value in results.environment.items()}
    for name, value in results.ceilings.items():
        unit = {"bandwidth": "GB/s", "matrix_rate": "GFLOP/s"}.get(name)
        shown = f"{short(value / 1e9)} {unit}" if unit else short(value)
        found[ceiling_name(name)] = shown
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _differences(earlier: Results, results: Results) -> list[str]:
    """What besides the code may explain changes."""
    old, new = _details(earlier), _details(results)
    parts = [
        f"{name} was {old.get(name, 'not said')}, is {new.get(name, 'not said')}"
        for name in differences(earlier, results)
    ]
    return [f"The runs differ in more than the code: {'; '.join(parts)}."] if parts else []


def _names(found: Measurement) -> tuple[str, str, str]:
    return f"{found.suite}: {found.case}", at(found), found.implementation


def _changes(changes: Sequence[Change], notes: Sequence[str]) -> Table:
    """What changed beyond noise, slower ones first."""
    changed = [each for each in changes if each.verdict != "same"]
    rows, marks = [], []
    for change in sorted(changed, key=lambda each: -each.ratio):
        medians = [amount(each.median, each.unit) for each in (change.before, change.after)]
        slower = change.verdict == "slower"
        verdict = change.verdict if change.after.unit == "s" else "more" if slower else "less"
        figures = f"{change.ratio:.2f}", f"{change.noise:.0%}"
        rows.append((*_names(change.after), *medians, *figures, verdict))
        marks.append("bad" if slower else "good")
    head = ("case", "at", "implementation", "before", "after", "after / before", "noise", "verdict")
    note = [
        *notes,
        f"{len(changes) - len(changed)} of {len(changes)} measurements are the same within noise; "
        "comparison.csv has all. Noise is the sum of both runs' distances from the 20th to the "
        "80th percentile, wider for few samples, at least 5 %, and at least 25 % for times of one "
        "or two samples.",
    ]
    title = "Compared with the earlier run"
    return Table(title, head, rows, figures=3, marks=marks, note=" ".join(note))


def _change_rows(changes: Sequence[Change]) -> list[list[Cell]]:
    head = ["case", "at", "implementation", "unit", "before", "after", "ratio", "noise", "verdict"]
    rows: list[list[Cell]] = [[*head]]
    for change in changes:
        medians = change.before.median, change.after.median
        figures = *medians, change.ratio, change.noise
        rows.append([*_names(change.after), change.after.unit, *figures, change.verdict])
    return rows
