"""The lock of an index's folder: of two processes that have it, one waits for the other.

It goes with the process, however it ends, and does not stay with one that was forked from it. Where
there is one, rows that are known to be new need not be compared with those that are stored, see
`clara.index.build`. Format 1 cannot do without.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from clara.index.errors import MemoryIndexError, failures_in
from clara.index.gate import NO_LOCKS, let_go
from clara.index.snapshot import Snapshot

PATIENCE: Final = 10.0
"""Seconds that a writer waits for another one, which may have been stopped."""

_SHORT_PATIENCE = 0.1

_PAUSE, _LONGEST_PAUSE = 0.001, 0.02  # seconds


class WriterLock:
    """The lock that a handle takes for the moment of each change.

    Attributes:
        impatient: another process did not let go of it the last time. It may have been stopped, so
            the next changes do not wait long.
    """

    def __init__(self) -> None:
        self.impatient = False

    @contextmanager
    def of(self, snapshot: Snapshot) -> Iterator[bool]:
        """Wait until no other process changes an index.

        Yields:
            False where that is not certain: the folder cannot be locked, or another process has
            kept the lock for `PATIENCE`. An index of format 1 is locked however long that takes.

        Raises:
            MemoryIndexError: the index has format 1 and its file system has no locks; names the
                command that makes an index which needs none.
        """
        if snapshot.header.format_version < 2:
            with folder_lock(snapshot.path) as locked:
                if not locked:
                    raise MemoryIndexError(
                        f"{snapshot.path}: adding to an index of format 1 needs a file lock "
                        "(flock), which this file system does not support; run 'clara index "
                        f"upgrade --model MODEL {snapshot.path}': the new format needs no lock"
                    )
                yield True
            return
        handle = self._locked(snapshot.path)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                let_go(handle)

    def _locked(self, path: str) -> int | None:
        """A handle that has the lock of the folder that is at a path now; None without it."""
        end = time.monotonic() + (_SHORT_PATIENCE if self.impatient else PATIENCE)
        pause = _PAUSE
        while True:
            handle, there = None, False
            try:
                handle = os.open(path, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = os.path.samestat(os.fstat(handle), os.stat(path))  # else it was replaced
            except BlockingIOError:
                pass
            except OSError:  # without locks, or gone: who reads the index says what is wrong
                return None
            finally:
                if handle is not None and not there:
                    let_go(handle)
            if there:
                self.impatient = False
                return handle
            if time.monotonic() >= end:
                self.impatient = True
                return None
            time.sleep(random.uniform(0, pause))
            pause = min(_LONGEST_PAUSE, 2 * pause)


@contextmanager
def folder_lock(path: str) -> Iterator[bool]:
    """Have the lock of a folder, or False where the file system has none."""
    with failures_in(path, "locking the index"):
        folder = os.open(path, os.O_RDONLY)
    try:
        locked = True
        with failures_in(path, "locking the index"):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                locked = False
        yield locked
    finally:
        let_go(folder)
