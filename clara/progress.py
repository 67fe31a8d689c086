"""Progress bars: on a terminal only, quiet in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class DocumentProgress:
    """Counts documents and tokens; knows documents per second and effective compression."""

    def __init__(self, bar: Progress, description: str, total: int | None) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, detail="")

    def advance(self, documents: int, detail: str = "") -> None:
        self._bar.update(self._task, advance=documents, detail=detail)


@contextmanager
def document_progress(
    description: str, total: int | None, *, visible: bool = True
) -> Iterator[DocumentProgress]:
    """A bar on standard error that disappears into nothing when that is no terminal."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (visible and console.is_terminal)) as bar:
        yield DocumentProgress(bar, description, total)
