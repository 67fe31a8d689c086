"""Opening files of a source, which others may change meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import PurePath

from clara.data.values import DataError

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# Some systems cannot open a folder without the right to list it.
_STEP = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def opened(path: str, root: str | None = None) -> int:
    """A descriptor of a regular file; a pipe is not waited for.

    Args:
        root: a folder above it, below which no symbolic link is followed: a file that has been
            swapped for a link since it was listed leads nowhere. None follows all links.

    Raises:
        DataError: it is no regular file, or a link or behind one.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, _READ) if root is None else _opened_below(root, path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("is not a file, but a pipe, socket or device")
    return descriptor


def _opened_below(root: str, path: str) -> int:
    *folders, name = PurePath(path).relative_to(root).parts
    above = os.open(root, _STEP & ~os.O_NOFOLLOW)
    try:
        for folder in folders:
            below = os.open(folder, _STEP, dir_fd=above)
            os.close(above)
            above = below
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise DataError("is a symbolic link or lies behind one; no link is followed") from error
        raise
    finally:
        os.close(above)
