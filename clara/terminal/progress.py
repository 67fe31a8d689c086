"""Progress: bars on a terminal; elsewhere nothing, or a line every so often."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
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

from clara.terminal.printing import is_terminal, say


class DocumentProgress:
    """Counts documents; a detail, such as the compression reached, stands beside the bar."""

    def __init__(
        self,
        bar: Progress,
        description: str,
        total: int | None,
        done: int,
        lines: Lines | None = None,
    ) -> None:
        self._bar = bar
        self._lines = lines
        self._task = bar.add_task(description, total=total, completed=done, detail="")

    def advance(self, documents: int, detail: str | None = None) -> None:
        if detail is not None:
            self._bar.update(self._task, detail=detail)
        self._bar.advance(self._task, documents)
        if self._lines is not None:
            self._lines.advance(documents, detail)


class Lines:
    """Says how far a job is, a line every so often: for logs, where a bar would be noise.

    A job that ends before the first line is due says nothing.

    Args:
        every: seconds from a line to the next.
        clock: seconds.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        done: int,
        unit: str,
        every: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._every, self._clock = every, clock
        self._done = self._done_then = done
        self._detail = ""
        self._then = clock()

    def advance(self, documents: int, detail: str | None = None) -> None:
        self._done += documents
        self._detail = self._detail if detail is None else detail
        passed = self._clock() - self._then
        if passed < self._every:
            return
        rate = (self._done - self._done_then) / passed
        self._then, self._done_then = self._clock(), self._done
        of = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{self._done:,}{of} {self._unit}", f"{rate:.1f} {self._unit}/s"]
        if self._detail:
            parts.append(self._detail)
        if self._total is not None and rate:
            parts.append(f"{duration(max(0, self._total - self._done) / rate)} left")
        say(f"{self._description}: {', '.join(parts)}")


def duration(seconds: float) -> str:
    """A time in the two units that fit, such as "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


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
    lines_every: float | None = None,
) -> Iterator[DocumentProgress]:
    """A bar on standard error that disappears into nothing when that is no terminal.

    Args:
        total: documents in all; None when that is not known.
        done: how many of them were done earlier.
        unit: what is counted.
        lines_every: where there is no terminal, say how far it is every so many seconds.
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
    lines = None
    if visible and not shown and lines_every is not None:
        lines = Lines(description, total, done, unit, lines_every)
    with Progress(*columns, console=console, disable=not shown) as bar:
        yield DocumentProgress(bar, description, total, done, lines)


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
