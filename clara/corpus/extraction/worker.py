"""The process that extracts: takes open files, one after the other, and answers with their text.

It is started with a socket as its standard input, and sends a byte when it is ready. A request is a
line of JSON that comes with the descriptor of an open file, an answer its length in eight bytes and
then JSON. A request without a descriptor asks for the next rows of the table that is open.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from clara.corpus.documents import Extracted
from clara.corpus.extraction.docx import read_docx
from clara.corpus.extraction.html import read_html
from clara.corpus.extraction.pdf import read_pdf
from clara.corpus.extraction.tables import TABLES, table_answers
from clara.corpus.limits import ExpandsError, Limits
from clara.data.values import DataError
from clara.errors import reason

READERS: dict[str, Callable[[BinaryIO, Limits], Extracted]] = {
    "docx": read_docx,
    "html": read_html,
    "pdf": read_pdf,
}
LENGTH = struct.Struct(">Q")
"""How the length of an answer is written."""


def serve(descriptor: int) -> None:
    """Answer requests until the other side closes the socket or a file could not be read cleanly.

    Args:
        descriptor: of the socket.
    """
    answering = _Answering()
    with socket.socket(fileno=descriptor) as channel:
        channel.sendall(b"\n")  # ready
        while request := _received(channel):
            _end_with_asker(channel, True)
            answer = answering.answer(*request)
            _end_with_asker(channel, False)
            content = json.dumps(answer).encode("ascii")
            channel.sendall(LENGTH.pack(len(content)) + content)
            if answer.get("broken"):
                return


def _end_with_asker(channel: socket.socket, wanted: bool) -> None:
    """Have the system end this process if the other side goes away, even while a library computes.

    SIGIO comes whenever there is something to read, so this is for times when nothing else is sent.
    """
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(channel, fcntl.F_GETFL)
    flags = flags | os.O_ASYNC if wanted else flags & ~os.O_ASYNC
    fcntl.fcntl(channel, fcntl.F_SETFL, flags)


def _received(channel: socket.socket) -> tuple[dict[str, Any], BinaryIO | None] | None:
    """A request and its file, if one came with it; None once there are no more."""
    message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
    if not message:
        return None
    while not message.endswith(b"\n"):
        more = channel.recv(1 << 16)
        if not more:
            return None
        message += more
    return json.loads(message), os.fdopen(descriptors[0], "rb") if descriptors else None


class _Answering:
    """Answers requests, and keeps the table whose rows are asked for little by little."""

    def __init__(self) -> None:
        self._table: Iterator[dict[str, Any]] = iter(())

    def answer(self, asked: dict[str, Any], file: BinaryIO | None) -> dict[str, Any]:
        """The answer to a request.

        It has "text", "title" and "marks"; of a table "columns" and "rows", and "end" once there
        are no more; or "error" and, where the process should not go on, "broken", "memory" where
        that was lacking, and "expands" where a table expands to too much.
        """
        limits = Limits(**asked["limits"])
        kind = asked["kind"]
        try:
            _restrict(limits)
            if kind in TABLES:
                if file is not None:
                    self._table = table_answers(kind, file, limits, asked["after"])
                return next(self._table, {"end": True})
            assert file is not None
            with file:
                found = READERS[kind](file, limits)
            return {"text": found.text, "title": found.title, "marks": found.marks}
        except DataError as error:
            return {"error": str(error), "expands": isinstance(error, ExpandsError)}
        except MemoryError:
            return {"error": "", "broken": True, "memory": True}
        except RecursionError:
            return {"error": "is nested too deeply", "broken": True}
        except Exception as error:  # whatever a reader does with a bad file is that file's failure
            return {"error": f"cannot be read: {reason(error)}", "broken": True}


def _restrict(limits: Limits) -> None:
    """Set the limits for one file. Beyond those on time, the system ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + limits.seconds)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_AS, limits.memory_bytes)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(which: int, value: int) -> None:
    """Set the soft limit, to no more than the hard one; some systems do not have all of them."""
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(which, (value, hard))
