"""Make standard input, output and error usable, even if the process was started without them.

Cron, daemons and service managers may start a process with some streams closed. Python then sets
`sys.stdout` to None, and the next file that is opened, perhaps by a library, gets the descriptor
of the missing stream: output of a C library would go into that file.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
from typing import Any, TextIO

# Read by rich and typer, which fail at anything but a number, and print nothing in a few columns.
_SIZES = ("COLUMNS", "LINES", "TERMINAL_WIDTH")


class Output(io.FileIO):
    """The raw file below standard output or error, which fails at most once.

    Attributes:
        failure: the first error of writing, or None. What is written later is dropped.
        needed: whether that error is raised. If not, the work goes on without its output.
    """

    def __init__(self, descriptor: int, *, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self.needed = needed

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                while (count := super().write(data)) is None:  # a full pipe that does not block
                    select.select([], [self], [])
                return count
            except OSError as error:
                self.failure = error
                if self.needed:
                    raise
        return memoryview(data).nbytes


def prepare() -> None:
    """Open what is closed and make writing safe. To be called before a file is opened.

    A closed stream becomes `os.devnull`: what would have gone there is dropped. A locale that
    cannot show a character gets a question mark in its place.
    """
    _fill_descriptors()
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = _safe(sys.stdout, needed=True)
    sys.stderr = _safe(sys.stderr, needed=False)
    for name in _SIZES:
        if not re.fullmatch("[1-9][0-9]{1,3}", os.environ.get(name, "10")):
            del os.environ[name]


def output_is_extra() -> None:
    """From here on, standard output that cannot be written stops nothing."""
    if (output := _raw(sys.stdout)) is not None:
        output.needed = False


def output_is_needed() -> bool:
    """Whether standard output is what a command is run for."""
    output = _raw(sys.stdout)
    return output is None or output.needed


def output_failure() -> OSError | None:
    """Why some of standard output was not written; None if all of it was."""
    output = _raw(sys.stdout)
    return None if output is None else output.failure


def _fill_descriptors() -> None:
    """Give 0, 1 and 2 to `os.devnull` where they are free, before another file gets them."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def _safe(stream: TextIO | None, *, needed: bool) -> Any:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        raw = Output(stream.fileno(), needed=needed)
    except (OSError, ValueError, AttributeError):  # replaced by something without a descriptor
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=bool(getattr(stream, "line_buffering", False)),
        write_through=bool(getattr(stream, "write_through", False)),
    )


def _raw(stream: Any) -> Output | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Output) else None
