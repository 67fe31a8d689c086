"""A journal of the documents that were compressed again, which a killed process leaves readable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from clara.index.errors import failures_in


class Journal:
    """Which documents of an index another one holds, and as what.

    Each change is told twice: before the documents are stored they become unknown, and afterwards
    what they were made from is known. So whatever a killed process has left, nothing is known of a
    document that is not so.

    Args:
        file: of JSON lines; made if there is none. A line that was cut off is left out. If any
            other cannot be read, nothing is known.

    Attributes:
        known: the state that each document was made from, in hexadecimal digits.

    Raises:
        MemoryIndexError: the file cannot be read or written, or is a link.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._file = Path(file)
        self.known: dict[str, str] = {}
        with failures_in(self._file, "reading the journal"), self._opened("rb") as journal:
            lines = journal.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                self._take(json.loads(line))
        except (ValueError, TypeError, AttributeError, RecursionError):
            whole, self.known = b"", {}
        if whole != lines:
            with failures_in(self._file, "writing the journal"), self._opened("r+b") as journal:
                journal.truncate(len(whole))

    def begin(self, document_ids: Iterable[str]) -> None:
        """These documents are about to be stored or deleted."""
        self._write({"begun": list(document_ids)})

    def end(self, states: Mapping[str, str]) -> None:
        """These documents are stored, and what they were made from."""
        self._write({"stored": dict(states)})

    def _write(self, line: Mapping[str, object]) -> None:
        with failures_in(self._file, "writing the journal"), self._opened("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _opened(self, mode: str) -> IO[bytes]:
        """The file, made if there is none, but never one that a link leads to."""
        return open(self._file, mode, opener=_not_linked)

    def _take(self, line: Mapping[str, object]) -> None:
        begun, stored = line.get("begun", []), line.get("stored", {})
        if not isinstance(begun, list) or not isinstance(stored, dict):
            raise TypeError(line)
        for name in begun:
            self.known.pop(name, None)
        self.known.update(stored)


def _not_linked(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
