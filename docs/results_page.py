#!/usr/bin/env python
"""Write docs/results.md, and a report of each run, from the runs of `clara evaluate` that are kept.

    python docs/results_page.py           # write the page and the reports
    python docs/results_page.py --check   # fail if the committed page differs from the runs

A run is kept as a folder of docs/results: run.json, answers.jsonl, rankings.jsonl, documents.jsonl
and summary.json, as the command left them. Everything on the page comes from these files. To change
a figure, evaluate again. The same runs give the same page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clara.data.values import DataError
from clara.errors import ClaraError
from clara.evaluation.folder import RUN
from clara.evaluation.report import tables
from clara.evaluation.report.choosing import choice_table
from clara.evaluation.report.completing import completed
from clara.evaluation.report.lead import lead
from clara.evaluation.report.pictures import PICTURES
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.writing import READING, write_report
from clara.files.writing import write_text
from clara.reports.report import NO_PICTURES
from clara.reports.tables import escaped

DOCS = Path(__file__).resolve().parent
RESULTS = "results"
PAGE = "results.md"
HEADING = """\
<!-- Written by docs/results_page.py from the runs in docs/results. Do not edit this page. -->

# Results

"""
_DRAWN = ".csv", ".png"  # tables and pictures of a report, of which some runs give fewer
_KEPT = ".md", *_DRAWN  # of a report; the page in HTML holds the pictures once more


def page(docs: Path) -> str:
    """The page in Markdown: of every run the sentence, the pictures and the tables.

    Args:
        docs: the folder of pages, in which `results` holds the runs.

    Raises:
        DataError: a run is damaged, or there is none.
    """
    parts = [HEADING, READING + "\n"]
    for folder in runs(docs):
        run = completed(read_run(folder))
        place = f"{RESULTS}/{folder.name}"
        parts.append(f"\n## {escaped(folder.name)}\n\n{escaped(lead(run))}\n")
        found = [kind for kind in PICTURES if (folder / f"{kind.name}.png").is_file()]
        parts += [f"\n![{escaped(each.caption)}]({place}/{each.name}.png)\n" for each in found]
        shown = (
            choice_table(run),
            tables.entry_table(run),
            tables.ranker_table(run),
            tables.type_table(run),
        )
        parts += [f"\n{table.markdown(3)}" for table in shown if table.rows]
        parts.append(
            f"\n[The whole report]({place}/report.md) has wrong answers of every type, all pairs "
            "with their tests, and what the figures depend on. "
            f"`docs/{place}/answers.jsonl` has every answer.\n"
        )
    return "".join(parts)


def runs(docs: Path) -> list[Path]:
    """The folders of runs, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(file.parent for file in (docs / RESULTS).glob(f"*/{RUN}"))
    if not found:
        raise DataError(f"{docs / RESULTS}: no folder in it holds a run of clara evaluate ({RUN})")
    return found


def write_reports(docs: Path) -> None:
    """Put the report of each run beside its files: Markdown, tables and pictures.

    Pictures and tables that the run no longer gives are removed.

    Raises:
        DataError: a run is damaged, there is none, or matplotlib is not installed.
    """
    for folder in runs(docs):
        with tempfile.TemporaryDirectory() as made:
            if NO_PICTURES in write_report([folder], made).notes:
                raise DataError(f"{folder}: {NO_PICTURES}")
            files = [file for file in sorted(Path(made).iterdir()) if file.suffix in _KEPT]
            given = {file.name for file in files}
            for file in folder.iterdir():
                if file.suffix in _DRAWN and file.name not in given:
                    file.unlink()
            for file in files:
                (folder / file.name).write_bytes(file.read_bytes())


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    parser = argparse.ArgumentParser(description="Write docs/results.md from the runs there.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    checked = parser.parse_args(arguments).check
    try:
        if not checked:
            write_reports(docs)
            write_text(docs / PAGE, page(docs))
            return 0
        file = docs / PAGE
        if not file.is_file() or file.read_text("utf-8") != page(docs):
            print(f"{file} is not what its runs give: run docs/results_page.py", file=sys.stderr)
            return 1
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
