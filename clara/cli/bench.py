"""`clara bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.errors import Group, user_errors
from clara.terminal.printing import one_line

bench = typer.Typer(
    cls=Group, name="bench", no_args_is_help=True, help="Reports of benchmark results."
)


@bench.command("report")
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="One results file, or two to compare: the earlier one first."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path(
        "report"
    ),
) -> None:
    """Write a report: one HTML page, and its tables and pictures as files."""
    from clara.reports.report import write_report

    with user_errors():
        made = write_report(results, output)
    print(output / "report.html")
    for note in made.notes:
        print(one_line(note))
    if len(results) > 1:
        counts = [f"{made.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same")]
        print(f"compared with {results[0]}: {', '.join(counts)}")
