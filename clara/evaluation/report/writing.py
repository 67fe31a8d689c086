"""`write_report`: one page, Markdown, CSV and pictures from the folders of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.data.values import DataError
from clara.evaluation.report import tables
from clara.evaluation.report.choosing import choice_table
from clara.evaluation.report.completing import completed
from clara.evaluation.report.lead import contestants, lead, leaders
from clara.evaluation.report.merging import merged
from clara.evaluation.report.pictures import PICTURES, draw_all, file_prefix
from clara.evaluation.report.probes import probe_rows, probe_tables
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import Run
from clara.evaluation.report.types import example_rows, example_tables
from clara.files.writing import new_files
from clara.reports.page import pages
from clara.reports.report import NO_PICTURES
from clara.reports.sections import Picture, Section, filled
from clara.reports.tables import Table, csv_text
from clara.terminal.printing import excerpt

HEADING = "CLaRa evaluation"
READING = (
    "How to read this: “exact match” is the share of questions whose answer is one of the golden "
    "ones, once case, punctuation and articles are removed. Ranges in brackets are 95 % intervals: "
    "of twenty such ranges, about nineteen hold the figure that all questions of this kind would "
    "give. Controls answer from memory of other documents, or from none: if an "
    "entry is less than 10 points above the better of its controls, its remark is “answers do not "
    "come from memory”."
)
UNTRAINED = (
    "Entries with the remark “untrained adapters” show what memory is worth before any training: "
    "their figures say nothing of a trained model."
)
_LONGEST_SETTING = 160


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        lead: a sentence for each data set: what was measured and who won.
        notes: what a reader should know before any figure.
        files: that were made, by name.
    """

    lead: list[str]
    notes: list[str]
    files: list[str]


def write_report(
    folders: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    side_by_side: bool = False,
) -> Report:
    """Make `report.html`, `report.md`, tables as CSV and, with matplotlib, pictures as PNG.

    `report.html` holds its pictures and needs no other file. Everything is made before anything is
    moved to the folder, where it replaces what an earlier report left. The same runs give the same
    files, byte for byte.

    Args:
        folders: of runs. Those of the same questions are shown as one.
        output: folder, made if it is missing.
        side_by_side: show runs of other questions too, as data sets of their own.

    Raises:
        DataError: a run cannot be read, runs are of other questions, or `output` is not a folder.

    Example:
        >>> write_report(["runs/factbook"], "report").lead  # doctest: +SKIP
        ['On 200 questions with 20 candidates each, text with BM25 answers 41 % exactly …']
    """
    paths = [Path(folder).expanduser() for folder in folders]
    target = Path(output).expanduser()
    if not paths:
        raise DataError("a report takes at least one folder of a run, got none")
    runs, notes = merged([read_run(path) for path in paths], paths, side_by_side=side_by_side)
    runs = [completed(run) for run in runs]
    if any(entry.trained is False for run in runs for entry in run.entries):
        notes.append(UNTRAINED)
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is not a folder")
    target.mkdir(parents=True, exist_ok=True)
    with new_files(target) as made:
        prefixes = [file_prefix(run.name) if len(runs) > 1 else "" for run in runs]
        pictures, lacking = _pictures(runs, prefixes, made)
        drawn = None if lacking else {Path(picture.name).stem for picture in pictures}
        sections = [
            section
            for run, prefix in zip(runs, prefixes)
            for section in _sections(run, prefix, drawn)
        ]
        lead_sentences = _lead(runs)
        title = ", ".join(run.name for run in runs)
        notes += lacking
        whole = pages(HEADING, title, lead_sentences, notes, filled(sections, pictures), READING)
        for name, content in {**_csv(runs, prefixes), **whole}.items():
            (made / name).write_text(content, encoding="utf-8")
        names = sorted(path.name for path in made.iterdir())
    return Report(lead_sentences, notes, names)


def _lead(runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return [lead(runs[0])]
    return [f"{run.name}: {lead(run)}" for run in runs]


def _pictures(
    runs: Sequence[Run], prefixes: Sequence[str], folder: Path
) -> tuple[list[Picture], list[str]]:
    """Pictures of all runs, and a remark if they cannot be drawn."""
    try:
        drawn = [draw_all(run, folder, prefix) for run, prefix in zip(runs, prefixes)]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return [], [NO_PICTURES]
    return [picture for each in drawn for picture in each], []


def _sections(run: Run, prefix: str, drawn: Collection[str] | None) -> list[Section]:
    """The parts of the page about one data set.

    Args:
        drawn: names of pictures; the others are said to be missing. None says nothing of them.
    """
    costs = [choice_table(run), tables.stage_table(run), tables.kept_table(run)]
    costs.append(tables.break_even_table(run))
    types = [tables.type_table(run), *example_tables(run, contestants(run))]
    plan: list[tuple[str, list[Table], tuple[str, ...]]] = [
        ("Answers", [tables.entry_table(run), tables.meaning_table(run)], ("accuracy-by-rate",)),
        ("Cost", costs, ("prompt-tokens", "latency", "bytes")),
        ("Pairs", tables.pair_tables(run, leaders(run)), ()),
        ("Ranking", [tables.ranker_table(run)], ("recall",)),
        ("Probes", probe_tables(run), ()),
        ("Errors", types, ("errors",)),
        ("Settings and environment", [_conditions(run)], ()),
    ]
    missing = {each.name: each.missing for each in PICTURES}
    sections = []
    for title, found, plots in plan:
        title = f"{run.name}: {title}" if prefix else title
        lacking = [name for name in plots if drawn is not None and prefix + name not in drawn]
        remark = " ".join(missing[name] for name in lacking)
        remarks = [Table(title, (), (), note=remark)] if lacking else []
        shown = [*remarks, *(table for table in found if table.rows)]
        sections.append(Section(title, shown, tuple(prefix + name for name in plots)))
    return sections


def _csv(runs: Sequence[Run], prefixes: Sequence[str]) -> dict[str, str]:
    found = {}
    for run, prefix in zip(runs, prefixes):
        files = tables.csv_files(run)
        optional = {"errors.csv": example_rows(run, leaders(run)), "probes.csv": probe_rows(run)}
        files |= {name: rows for name, rows in optional.items() if len(rows) > 1}
        found.update({f"{prefix}{name}": csv_text(rows) for name, rows in files.items()})
    return found


def _conditions(run: Run) -> Table:
    """What the figures depend on."""
    rows = [(name.replace("_", " "), _plain(value)) for name, value in run.settings.items()]
    rows += [(name.replace("_", " "), _plain(value)) for name, value in run.environment.items()]
    return Table("Settings and environment", ("", "this run"), rows, figures=2, prose=True)


def _plain(value: Any) -> str:
    """A setting on one line; of long ones the beginning."""
    if isinstance(value, list):
        value = [each.get("entry", each) if isinstance(each, dict) else each for each in value]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return excerpt(", ".join(value), 4 * _LONGEST_SETTING)
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return excerpt(shown, _LONGEST_SETTING)
