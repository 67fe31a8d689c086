"""Files that are read, and files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def existing(path: str | os.PathLike[str]) -> str:
    """The path as a string; FileNotFoundError unless there is something."""
    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"path {name!r} does not exist")
    return name


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """A path to write to instead; afterwards that file takes the place of `path`.

    After an error whatever was at `path` is still there, and nothing else.
    """
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
