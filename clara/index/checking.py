"""Check every row of a version of an index, and go on behind those that are damaged.

As a program it does so for a parent process, which Lance cannot end with it: it is told the folder,
the version and the number of the file to begin with, and writes lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from clara.index.errors import MemoryIndexError, failures_in
from clara.index.layout import (
    check_memory,
    decode,
    decode_entries,
    decode_ranked,
    decode_texts,
)
from clara.index.snapshot import Snapshot, file_of

_MODULE = "clara.index.checking"


class Damaged(NamedTuple):
    """A part of an index that is not what was written.

    Attributes:
        document_id: None where the file does not tell.
        row: id of the row; None where the file does not tell.
        what: "text", "memory", "mean", "metadata", "text or memory" in formats 1 and 2, "names" of
            a row (id, document, title or a number, so the two fields above may be wrong), or "file
            NAME: …" of all rows of a file of which nothing can be read.
    """

    document_id: str | None
    row: str | None
    what: str


class Part(NamedTuple):
    """What of a row has a checksum of its own."""

    what: str
    columns: list[str]
    check: Callable[..., Any]


def damaged_rows(snapshot: Snapshot, first_file: int = 0) -> Iterator[int | Damaged]:
    """Read all rows, file by file.

    Args:
        first_file: how many files to pass over.

    Yields:
        The number of each file before it is read, and what is damaged in it.
    """
    begin = 0
    step = snapshot.batch_rows(snapshot.header.memory_tokens, snapshot.header.memory_tokens)
    for number, fragment in enumerate(snapshot.fragments):
        rows = range(begin, begin + fragment.physical_rows - fragment.num_deletions)
        begin = rows.stop
        if number < first_file:
            continue
        yield number
        if len(rows) and not any(_names(snapshot, [row])[1] for row in (rows[0], rows[-1])):
            yield Damaged(None, None, f"file {file_of(fragment)}: it cannot be read")
            continue
        for start in range(rows.start, rows.stop, step):
            yield from _damaged_among(snapshot, range(start, min(rows.stop, start + step)))


def damaged_rows_apart(snapshot: Snapshot) -> Iterator[Damaged]:
    """`damaged_rows`, read by a child process that may die of a damaged file; names that file.

    Raises:
        MemoryIndexError: the child ended before it read any file, so that none is to blame.
    """
    file = 0
    while file < len(snapshot.fragments):
        state = _Child(file)
        yield from state.run(snapshot)
        if not state.died:
            return
        if not state.begun:
            raise MemoryIndexError(
                f"{snapshot.path}: the process that checks it ended with {state.died} before it "
                "read a file"
            )
        path = file_of(snapshot.fragments[state.file])
        yield Damaged(None, None, f"file {path}: the process that read it ended with {state.died}")
        file = state.file + 1


class _Child:
    """A process that checks an index from some file on.

    Attributes:
        file: which it has begun last.
        begun: whether it has begun any.
        died: how it ended, if not as it should.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self.begun = False
        self.died: str | None = None

    def run(self, snapshot: Snapshot) -> Iterator[Damaged]:
        arguments = [snapshot.path, str(snapshot.version), str(self.file)]
        paths = os.pathsep.join(path for path in sys.path if path)
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Lance tells there where it was when it died
            env={**os.environ, "PYTHONPATH": paths},
        )
        finished = False
        try:
            for line in process.stdout or ():
                found = json.loads(line)
                if isinstance(found, int):
                    self.file, self.begun = found, True
                elif found is None:
                    finished = True
                else:
                    yield Damaged(*found)
            code = process.wait()
            if code or not finished:
                self.died = f"signal {-code}" if code < 0 else f"status {code}"
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def parts_of(snapshot: Snapshot) -> list[Part]:
    """The parts of a row beside its small columns."""
    header = snapshot.header
    if header.storage is None:
        return [Part("text or memory", header.all_columns, decode)]
    heads = header.head_columns
    parts = [
        Part("text", [*heads, "text"], decode_texts),
        Part("memory", [*heads, *header.memory_columns], check_memory),
    ]
    if header.mean_bytes is not None:
        parts.append(Part("mean", header.vector_columns, decode_ranked))
    if header.columns is not None:
        parts.append(Part("metadata", header.entry_columns, decode_entries))
    return parts


def _damaged_among(snapshot: Snapshot, rows: range) -> Iterator[Damaged]:
    """What is damaged of some rows, found by halving them."""
    if all(_intact(snapshot, rows, part) for part in parts_of(snapshot)):
        return
    if len(rows) > 1:
        middle = rows.start + len(rows) // 2
        yield from _damaged_among(snapshot, range(rows.start, middle))
        yield from _damaged_among(snapshot, range(middle, rows.stop))
        return
    try:
        (entry,) = snapshot.take_heads(rows)
    except MemoryIndexError:
        yield Damaged(*_names(snapshot, rows), "names")
        return
    for part in parts_of(snapshot):
        if not _intact(snapshot, rows, part):
            yield Damaged(*entry, part.what)


def _intact(snapshot: Snapshot, rows: Sequence[int], part: Part) -> bool:
    try:
        with failures_in(snapshot.path, "reading"):
            batch = snapshot.take_columns(rows, part.columns)
            part.check(snapshot.header, batch, rows, snapshot.path)
    except MemoryIndexError:
        return False
    return True


def _names(snapshot: Snapshot, rows: Sequence[int]) -> tuple[str | None, str | None]:
    """Document and row as the file has them, whatever their checksum says."""
    found: list[str | None] = []
    for name in ("document_id", "id"):
        try:
            with failures_in(snapshot.path, "reading"):
                found.append(snapshot.take_columns(rows, [name]).column(name)[0].as_py())
        except MemoryIndexError:
            found.append(None)
    return found[0], found[1]


def main(arguments: Sequence[str]) -> None:
    """Check an index for `damaged_rows_apart`."""
    path, version, first_file = arguments
    for found in damaged_rows(Snapshot.at(path, int(version)), int(first_file)):
        print(json.dumps(found), flush=True)
    print(json.dumps(None), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
