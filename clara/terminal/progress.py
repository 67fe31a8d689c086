"""Progress bars: on a terminal only, quiet in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from clara.terminal.printing import is_terminal


class DocumentProgress:
    """Counts documents; a detail, such as the compression reached, stands beside the bar."""

    def __init__(self, bar: Progress, description: str, total: int | None, done: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=done, detail="")

    def advance(self, documents: int, detail: str | None = None) -> None:
        if detail is not None:
            self._bar.update(self._task, detail=detail)
        self._bar.advance(self._task, documents)


class DocumentRate(ProgressColumn):
    """Documents, or what else is counted, per second of the last half minute."""

    def __init__(self, unit: str = "documents") -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        shown = "" if speed is None else f"{speed:.1f} {self._unit}/s"
        return Text(shown, style="progress.data.speed")


@contextmanager
def document_progress(
    description: str,
    total: int | None,
    *,
    done: int = 0,
    visible: bool = True,
    unit: str = "documents",
) -> Iterator[DocumentProgress]:
    """A bar on standard error that disappears into nothing when that is no terminal.

    Args:
        total: documents in all; None when that is not known.
        done: how many of them were done earlier.
        unit: what is counted.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        DocumentRate(unit),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)
    shown = visible and is_terminal()
    with Progress(*columns, console=console, disable=not shown) as bar:
        yield DocumentProgress(bar, description, total, done)


class ByteProgress:
    """Counts bytes."""

    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total)

    def advance(self, nbytes: int) -> None:
        self._bar.advance(self._task, nbytes)


@contextmanager
def byte_progress(description: str, total: int, *, visible: bool = True) -> Iterator[ByteProgress]:
    """A bar on standard error, for files that are read; nothing where that is no terminal.

    Args:
        total: bytes in all.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)
    shown = visible and is_terminal()
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        yield ByteProgress(bar, description, total)
