"""The side that asks: starts the process that extracts, watches it, and starts it anew."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from clara.corpus.documents import Extracted, marks_of
from clara.corpus.extraction.worker import LENGTH
from clara.corpus.limits import ExpandsError, Limits
from clara.data.values import DataError
from clara.errors import shortened
from clara.errors.checks import surrogate_flaw

_ROOT = str(Path(__file__).resolve().parents[3])  # where the package clara lies
_START = 30.0  # seconds until a new process must be there
# By the clock, a file may take so many times its processor time: other programs run as well.
_PATIENCE = 3
_REASON = 400  # characters of a message of the process
_ROOM = 64 << 20  # bytes of an answer for marks, beside its text
# What a library needs of the environment. Tokens and passwords in it are none of this process'.
_ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TZ")
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from clara.corpus.extraction.worker import serve
serve(0)
"""


# Messages name the types of values that are no scalars, and nothing else is done with them.
_OF_TYPE: dict[str, Any] = {
    "list": [None],
    "dict": {},
    "bytes": b"",
    "Decimal": Decimal(0),
    "timedelta": timedelta(),
}


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        number: from 1 on.
        columns: of the table.
        values: by column; none where the row cannot be read.
        flaw: why it cannot be read; None where it can.
    """

    number: int
    columns: list[str]
    values: dict[str, Any]
    flaw: str | None


class _EndedError(DataError):
    """The process has ended; the message says why."""


class Extractor:
    """Extracts text in another process, one for many files, which is replaced after a failure.

    A file that makes the process hang, crash or take too much is a failure of that file alone. The
    process gets no names of files, only open ones, and of the environment what libraries need; it
    cannot write files.

    Example:
        >>> with Extractor(Limits(seconds=20)) as extractor:  # doctest: +SKIP
        ...     found = extractor.read("pdf", os.open("report.pdf", os.O_RDONLY))
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = Limits() if limits is None else limits
        self._running: _Running | None = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The id of the process that runs now; None where there is none."""
        return None if self._running is None else self._running.process.pid

    def read(self, kind: str, descriptor: int) -> Extracted:
        """The text of an open file.

        Args:
            kind: "html", "pdf" or "docx".
            descriptor: of the file, at its beginning; it is closed.

        Raises:
            DataError: the file cannot be read, or reading it met a limit.
        """
        try:
            fresh = self._running is None
            answer = self._asked(kind, descriptor)
            if answer.get("memory") is True and not fresh:
                # Memory may be lacking for what earlier files have left of it.
                answer = self._asked(kind, descriptor)
        finally:
            os.close(descriptor)
        self._check(answer)
        found = _as_text(answer)
        if found is None:
            raise self._senseless()
        return found

    def rows(self, kind: str, descriptor: int) -> Iterator[TableRow]:
        """The rows of an open table, in order.

        No other file may be read before the last of them has come. The limit on time is for some
        hundred rows, those on memory and expanded size are for the whole table.

        Args:
            kind: "parquet" or "arrow", a stream as `datasets` writes it.
            descriptor: of the file, at its beginning; it is closed at the end.

        Raises:
            DataError: the file, or the rest of it, cannot be read, or reading it met a limit.
            ExpandsError: it expands to too much.
        """
        done, fresh, opened = 0, self._running is None, False
        try:
            while True:
                answer = self._asked(kind, None if opened else descriptor, after=done)
                if answer.get("memory") is True and not fresh:
                    fresh, opened = True, False
                    continue
                opened = True
                self._check(answer)
                if answer.get("end") is True:
                    return
                rows = _as_rows(answer, done)
                if rows is None:
                    raise self._senseless()
                yield from rows
                done += len(rows)
        finally:
            os.close(descriptor)

    def _check(self, answer: dict[str, Any]) -> None:
        """Raise what an answer says is wrong.

        Raises:
            DataError: says what; ExpandsError of a table that expands to too much.
        """
        if answer.get("memory") is True:
            raise DataError(
                f"needs more memory than {self._limits.memory_mb:g} MB, the limit memory_mb"
            )
        if isinstance(answer.get("error"), str):
            kind = ExpandsError if answer.get("expands") is True else DataError
            raise kind(_one_line(answer["error"]))

    def _senseless(self) -> DataError:
        """The error about an answer that no reader gives; its process is ended."""
        self.close()
        return DataError("cannot be read: its reader's answer makes no sense")

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.close()
        self._running = None

    def _asked(self, kind: str, descriptor: int | None, **further: Any) -> dict[str, Any]:
        """The answer of the process, which is at its end unless the answer is a sound one.

        Args:
            descriptor: of a file to begin with, which is read from its beginning; None goes on
                with the table that is open.
        """
        request = {"kind": kind, "limits": asdict(self._limits), **further}
        if descriptor is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
        # A character takes up to six bytes of JSON, which may be one byte of UTF-8.
        longest = 6 * self._limits.document_bytes + _ROOM
        seconds = self._limits.seconds
        try:
            if self._running is None:
                self._running = _Running.start()
                self._running.wait_until_ready()
            answer = self._running.asked(request, descriptor, longest, _PATIENCE * seconds)
        except TimeoutError as error:
            self.close()
            raise DataError(
                f"takes longer than {_PATIENCE * seconds:g} s, {_PATIENCE} times the limit seconds"
            ) from error
        except _EndedError as error:
            self.close()
            used_up = f"takes more than {seconds:g} s of processor time, the limit seconds"
            raise DataError(str(error) or used_up) from error
        except BaseException:
            self.close()
            raise
        if answer.get("broken") is True:
            self.close()
        return answer


@dataclass(frozen=True)
class _Running:
    """A process and the socket to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    @classmethod
    def start(cls) -> _Running:
        ours, theirs = socket.socketpair()
        # Without the working folder: a file in it may be called as a library is.
        places = [place for place in sys.path if place] + [_ROOT]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CODE, json.dumps(places)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,  # an interrupt at the terminal is the parent's to handle
            )
        return cls(process, ours)

    def wait_until_ready(self) -> None:
        """Wait for the first byte, so that starting is no part of the time that a file takes.

        Raises:
            _EndedError: it does not come.
        """
        try:
            self._received(1, time.monotonic() + _START)
        except ConnectionError as error:
            raise _EndedError(self._ended()) from error
        except TimeoutError as error:
            raise _EndedError(f"its reader did not start within {_START:g} s") from error

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def asked(
        self, request: dict[str, Any], descriptor: int | None, longest: int, seconds: float
    ) -> dict[str, Any]:
        """The answer to a request about an open file, or about the one before.

        Args:
            longest: bytes of an answer that are read.
            seconds: until it must have come.

        Raises:
            TimeoutError: it has not come by then.
            _EndedError: the process ended; without a message if it used up its processor time.
        """
        deadline = time.monotonic() + seconds
        self.channel.settimeout(seconds)
        try:
            message = json.dumps(request).encode("ascii") + b"\n"
            socket.send_fds(self.channel, [message], [] if descriptor is None else [descriptor])
            (length,) = LENGTH.unpack(self._received(LENGTH.size, deadline))
            if length > longest:
                raise DataError("cannot be read: its reader's answer is too long")
            content = self._received(length, deadline)
        except ConnectionError as error:
            raise _EndedError(self._ended()) from error
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else {}

    def _received(self, count: int, deadline: float) -> bytearray:
        content = bytearray()
        while len(content) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.channel.settimeout(left)
            piece = self.channel.recv(min(count - len(content), 1 << 20))
            if not piece:
                raise ConnectionResetError
            content += piece
        return content

    def _ended(self) -> str:
        """Why the process ended; nothing where its processor time was used up."""
        try:
            code = self.process.wait(timeout=_START)
        except subprocess.TimeoutExpired:  # it has closed the socket, and goes on
            return "its reader hung up"
        if code == -signal.SIGXCPU:
            return ""
        if code == -signal.SIGKILL:
            return "its reader was killed, perhaps since the system lacked memory"
        if code < 0:
            return f"its reader crashed with the signal {_signal_name(-code)}"
        return f"its reader ended with the exit status {code}"


def _as_text(answer: dict[str, Any]) -> Extracted | None:
    """An answer as a text; None where it makes no sense.

    The process may have been taken over by what it read.
    """
    text, title = answer.get("text"), answer.get("title")
    if not isinstance(text, str) or not isinstance(title, str | None):
        return None
    if surrogate_flaw(text) or surrogate_flaw(title or ""):
        return None
    marks = marks_of(answer.get("marks"), text)
    return None if marks is None else Extracted(text, title, marks)


def _as_rows(answer: dict[str, Any], done: int) -> list[TableRow] | None:
    """An answer as rows of a table; None where it makes no sense.

    What values are is for those to check who use them, as they do with those of JSON lines.
    """
    columns, rows = answer.get("columns"), answer.get("rows")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        return None
    if not isinstance(rows, list):
        return None
    found = []
    for number, row in enumerate(rows, done + 1):
        if not (isinstance(row, list) and len(row) == 3 and row[0] == number):
            return None
        _, values, flaw = row
        if isinstance(values, list) and len(values) == len(columns):
            fields = {name: _value(each) for name, each in zip(columns, values, strict=True)}
            found.append(TableRow(number, columns, fields, None))
        elif values is None and isinstance(flaw, str):
            found.append(TableRow(number, columns, {}, _one_line(flaw)))
        else:
            return None
    return found


def _value(value: Any) -> Any:
    """A value of a row; of what is no scalar one of the same type."""
    if isinstance(value, dict):
        return _OF_TYPE.get(str(value.get("type")), object())
    return value


def _one_line(message: str) -> str:
    return shortened(" ".join(message.split()), _REASON)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
