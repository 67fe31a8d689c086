"""A page of tables and pictures from files of results, and the same as separate files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara.files.writing import new_files
from clara.reports import tables
from clara.reports.comparison import (
    Change,
    ceiling_name,
    compare,
    differences,
    only_in_one,
)
from clara.reports.growth import curves
from clara.reports.lead import lead
from clara.reports.page import READING, pages
from clara.reports.plots import draw_all
from clara.reports.results import Measurement, Results, ResultsError, read_results
from clara.reports.sections import Picture, Section, filled, inline
from clara.reports.tables import Cell, Table, amount, at, csv_text, short

NO_PICTURES = "No pictures: drawing needs the package matplotlib (pip install matplotlib)."

# Title, suites and pictures of each section. Other suites come after these, each in its own.
_SECTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Answers to questions", ("question",), ("answers", "stages", "sweeps")),
    ("Generation from memory and from text", ("generate",), ()),
    ("Compression of documents", ("compress",), ("throughput",)),
    ("Training steps", ("training",), ()),
    ("Peak memory", (), ("memory",)),
    ("Search", ("rank", "index", "scoring"), ("search",)),
    ("How cost grows with size", ("growth",), ("growth",)),
    ("Operators", ("operators",), ("roofline",)),
)


@dataclass
class Report:
    """What the page says.

    Attributes:
        title: device, commit and date.
        lead: sentences on what was measured, where, and the main result.
        notes: what a reader should know before any figure.
        sections: in their order on the page, the environment last.
        files: further files by name: tables as CSV.
        changes: of the measurements that two runs have in common.
    """

    title: str
    lead: list[str]
    notes: list[str]
    sections: list[Section]
    files: dict[str, str]
    changes: list[Change] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        return sum(change.verdict == verdict for change in self.changes)


def write_report(files: Sequence[Path], output: Path) -> Report:
    """Make `report.html`, `report.md`, tables as CSV, and the pictures of the last file.

    `report.html` holds its pictures and needs no other file. With two files, the second is compared
    with the first and what changed is marked. Everything is made before anything is moved to the
    folder, where it replaces what an earlier report left.

    Args:
        files: one or two files of results, the later one last.
        output: folder, made if it is missing.

    Raises:
        ResultsError: a file is not a results file, there are more than two, or `output` is not a
            folder.
    """
    if not 1 <= len(files) <= 2:
        raise ResultsError(f"a report takes one or two results files, got {len(files)}")
    *earlier, results = [read_results(file) for file in files]
    report = _report(results, earlier[0] if earlier else None)
    if output.exists() and not output.is_dir():
        raise ResultsError(f"{output}: is not a folder")
    output.mkdir(parents=True, exist_ok=True)
    with new_files(output) as made:
        try:
            drawn = draw_all(results, made)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            drawn = []
            report.notes.append(NO_PICTURES)
        pictures = [Picture(name, caption, inline(made / name)) for name, caption in drawn]
        sections = filled(report.sections, pictures)
        made_pages = pages(
            "CLaRa benchmarks", report.title, report.lead, report.notes, sections, READING
        )
        for name, content in {**report.files, **made_pages}.items():
            (made / name).write_text(content, encoding="utf-8")
    return report


def _report(results: Results, earlier: Results | None) -> Report:
    sections: list[Section] = []
    notes: list[str] = []
    changes: list[Change] = []
    files: dict[str, list[list[Cell]]] = {"results.csv": tables.measurement_rows(results)}
    if earlier is not None:
        changes = compare(earlier, results)
        notes = _differences(earlier, results)
        compared = [_changes(changes, notes)]
        files["comparison.csv"] = _change_rows(changes)
        alone = [(*_names(found), why) for found, why in only_in_one(earlier, results)]
        if alone:
            head = ("case", "settings", "implementation", "why")
            compared.append(Table("Measured in only one run", head, alone, figures=4))
        sections.append(Section("Compared with the earlier run", compared))
    if results.promises:
        old = None if earlier is None else earlier.promises
        sections.append(Section("Promises", [tables.promise_table(results.promises, old)]))
        files["promises.csv"] = tables.promise_rows(results.promises)
    grown = curves(results)
    if grown:
        files["growth.csv"] = tables.growth_rows(grown)
    sections += _measured(results, [tables.growth_table(grown)] if grown else [])
    sections.append(Section("Environment", [_environment(results, earlier)]))
    texts = {name: csv_text(rows) for name, rows in files.items()}
    sentences = lead(results, None if earlier is None else changes)
    return Report(_title(results), sentences, notes, sections, texts, changes)


def _measured(results: Results, growth: list[Table]) -> list[Section]:
    """A section for each subject, in which `growth` stands above the measurements of its suite."""
    by_suite = tables.suite_tables(results)
    known = {suite for _, suites, _ in _SECTIONS for suite in suites}
    plan = [
        *_SECTIONS,
        *((tables.suite_name(suite), (suite,), ()) for suite in by_suite if suite not in known),
    ]
    return [
        Section(
            title,
            [
                *(growth if "growth" in suites else []),
                *(by_suite[suite] for suite in suites if suite in by_suite),
            ],
            plots,
        )
        for title, suites, plots in plan
    ]


def _title(results: Results) -> str:
    known = results.environment
    parts = [known.get("device"), known.get("commit"), known.get("date")]
    return ", ".join(str(part) for part in parts if part) or "results"


def _environment(results: Results, earlier: Results | None) -> Table:
    """What figures depend on; of an earlier run beside it. What no run knows is left out."""
    runs = [_details(run) for run in (earlier, results) if run is not None]
    names = dict.fromkeys(name for run in reversed(runs) for name in run)
    rows = [
        (name.replace("_", " "), *values)
        for name in names
        if {*(values := tuple(run.get(name, "") for run in runs))} - {"none", ""}
    ]
    head = ("", "earlier run", "this run") if earlier is not None else ("", "this run")
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
    head = "case", "settings", "implementation", "before", "after", "after / before", "noise"
    note = [
        *notes,
        f"{len(changes) - len(changed)} of {len(changes)} measurements are the same within noise; "
        "comparison.csv has all of them. “Noise” is how far two medians may differ by chance: the "
        "sum of both runs' ranges from the 20th to the 80th percentile, widened for few samples, "
        "at least 5 %, and at least 25 % for times of one or two samples.",
    ]
    title = "Compared with the earlier run"
    return Table(title, (*head, "verdict"), rows, figures=3, marks=marks, note=" ".join(note))


def _change_rows(changes: Sequence[Change]) -> list[list[Cell]]:
    head = [
        "case",
        "settings",
        "implementation",
        "unit",
        "before",
        "after",
        "ratio",
        "noise",
        "verdict",
    ]
    rows: list[list[Cell]] = [[*head]]
    for change in changes:
        medians = change.before.median, change.after.median
        figures = *medians, change.ratio, change.noise
        rows.append([*_names(change.after), change.after.unit, *figures, change.verdict])
    return rows
