"""A gate before the commits of an index, which is closed for as long as a migration switches it.

A commit that comes between the last look at an index and the switch makes both begin again. So who
switches closes the gate, and those who write wait before it. Nothing rests on that but that the
switch comes: a commit that did not wait is taken up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from clara.index.errors import failures_in

FOLDER: Final = "_migration"
"""The folder within that of an index in which another one is made to take its place."""

NO_LOCKS = (errno.EBADF, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""What a file system without locks says when one is asked for."""

_GATE = os.path.join(FOLDER, "gate")
_PATIENCE = 600.0  # seconds
_PAUSE = 0.05


def try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file or folder, which goes with the process.

    Args:
        kind: `LOCK_EX`, or `LOCK_SH` for one that several may have.

    Returns:
        False if another process has it; True where the file system has no locks.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def let_go(handle: int) -> None:
    """Close an open file or folder and let go of its lock.

    A process that was forked meanwhile has the file open, too: closing it here would leave the lock
    with that one for as long as it lives.
    """
    with suppress(OSError):  # there are no locks
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def pass_gate(path: str) -> None:
    """Wait while the gate of an index is closed, but no longer than some minutes."""
    try:
        # A pipe in its place is not waited for.
        handle = os.open(os.path.join(path, _GATE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # as a rule there is no migration
        return
    try:
        begin = time.monotonic()
        while not try_lock(handle, fcntl.LOCK_SH) and time.monotonic() - begin < _PATIENCE:
            time.sleep(_PAUSE)
    finally:
        let_go(handle)


@contextmanager
def closed_gate(path: str) -> Iterator[None]:
    """Close the gate of an index that has the folder of a migration.

    Raises:
        MemoryIndexError: the folder cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with failures_in(path, "switching"):
        handle = os.open(os.path.join(path, _GATE), flags, 0o644)
    try:
        while not try_lock(handle):  # somebody is passing it
            time.sleep(_PAUSE)
        yield
    finally:
        let_go(handle)
