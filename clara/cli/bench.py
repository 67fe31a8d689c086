"""`clara bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.errors import Group, user_errors
from clara.terminal.printing import one_line

bench = typer.Typer(
    cls=Group, name="bench", no_args_is_help=True, help="Results of `pytest bench`."
)


@bench.command("report")
def report(
    results: Annotated[
        list[Path], typer.Argument(help="A file of results, or two to compare, the later one last.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path(
        "report"
    ),
) -> None:
    """Make one page with pictures and tables of results, and the same as separate files."""
    from clara.reports.report import write_report

    with user_errors():
        made = write_report(results, output)
    print(output / "report.html")
    for note in made.notes:
        print(one_line(note))
    if len(results) > 1:
        counts = [f"{made.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same")]
        print(f"compared with {results[0]}: {', '.join(counts)}")
