"""`clara evaluate report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.errors import user_errors
from clara.cli.paths import check_parent, expanded
from clara.terminal.printing import one_line


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path(
        "report"
    ),
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side", help="Show runs of other questions as data sets of their own."
        ),
    ] = False,
) -> None:
    """Write a report of runs: one HTML page, and its tables and pictures as files.

    Runs of the same questions are shown as one.
    """
    check_parent(output)
    from clara.evaluation.report.writing import write_report

    folder = expanded(output)
    with user_errors():
        made = write_report(map(expanded, runs), folder, side_by_side=side_by_side)
    print(one_line(str(folder / "report.html")))
    for line in (*made.lead, *made.notes):
        print(one_line(line))
