"""Processes that add documents, beside processes that read all the while.

Each of those that add keeps a journal of what was committed. A reader reads the journals before it
reads the index: all that is in them has to be there, once and whole, and so has all that the reader
has read before.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.index import MemoryIndex
from tests.crash.children import Child, Died
from tests.crash.contents import (
    State,
    Wrong,
    check_searches,
    compressed,
    details,
    first_of,
    new_index,
    state_of,
)

_AT_ONCE = 4  # documents of a commit
_MOST = 6000  # documents; reading all of them takes ever longer
_LONGEST_PAUSE = 0.1  # seconds, after a commit


def append(connection: Any, path: str, number: int, most: int, end: float) -> None:
    """Add documents until `end`, and write the number of each commit to the journal."""
    index, chance = MemoryIndex.open(path), random.Random(number)
    done = 0
    with open(_journal(path, number), "w", buffering=1) as journal:
        while time.time() < end and done < most:
            new = _documents(number, done)
            index.add(compressed(new), details(new))
            journal.write(f"{done}\n")
            done += 1
            time.sleep(chance.uniform(0, _LONGEST_PAUSE))
    connection.send(done)


def read(connection: Any, path: str, appenders: int, end: float) -> None:
    """Read and search until `end`; tells how often, or what is wrong."""
    index = MemoryIndex.open(path)
    before = State()
    version = reads = 0
    try:
        while time.time() < end:
            needed = _committed(path, appenders)
            pinned = index.at_this_version()
            now = pinned._snapshot.version
            if now < version:
                raise Wrong(f"version {now} was read after version {version}")
            version, found = now, state_of(pinned)
            if lost := [name for name in needed if found.get(name) != needed[name]]:
                raise Wrong(f"version {version} does not hold {lost}, which were committed")
            if list(found.items())[: len(before)] != list(before.items()):
                raise Wrong(f"version {version} does not begin with what was read before it")
            check_searches(pinned, found, seed=reads)
            before = found
            reads += 1
    except Wrong as error:
        connection.send(str(error))
    connection.send(reads)


def run(folder: Path, seconds: float, appenders: int = 4, readers: int = 4) -> Counter[str]:
    """Let them work for so long.

    Returns:
        How many commits and reads there were.

    Raises:
        Wrong: a row was lost, or is there twice, or a read was torn.
    """
    index = new_index(folder / "crowd")
    with Child(_answer) as first:  # the process that all are forked from takes seconds to start
        first.receive()
    end = time.time() + seconds
    counted: Counter[str] = Counter()
    adding = [
        Child(append, index.path, number, _MOST // appenders, end) for number in range(appenders)
    ]
    reading = [Child(read, index.path, appenders, end) for _ in range(readers)]
    for name, children in (("commits", adding), ("reads", reading)):
        for child in children:
            try:
                said = child.receive(seconds + 120)
            except Died as error:
                raise Wrong(f"{name}: {error}") from error
            if isinstance(said, str):
                raise Wrong(f"a reader: {said}")
            counted[name] += said
    for child in (*adding, *reading):
        child.kill()
    found = state_of(MemoryIndex.open(index.path))
    expected = _committed(index.path, appenders)
    first_of([State(sorted(expected.items()))], State(sorted(found.items())))
    return counted


def _answer(connection: Any) -> None:
    connection.send(None)


def _documents(number: int, commit: int) -> State:
    """What an appender adds in a commit."""
    first = commit * _AT_ONCE
    return State({f"a{number} {each}": commit for each in range(first, first + _AT_ONCE)})


def _journal(path: str, number: int) -> Path:
    return Path(f"{path}.{number}.journal")


def _committed(path: str, appenders: int) -> State:
    """What all journals say, a line that is being written left out."""
    state = State()
    for number in range(appenders):
        with suppress(FileNotFoundError):
            for line in _journal(path, number).read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    state.update(_documents(number, int(line)))
    return state
