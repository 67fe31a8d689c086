"""Folders of indexes: check that Lance can open a path, and create a folder completely or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from clara.errors.checks import check_characters
from clara.files import writing
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.gate import FOLDER

VIEWS = "_views"
"""The folder in that of an index where `clara.index.views` keeps its files."""


def local_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of a folder, links resolved.

    Raises:
        TypeError: not a path.
        MemoryIndexError: a path that Lance cannot open; names the character.
    """
    given = os.fsdecode(path)
    return _checked(os.path.realpath(os.path.expanduser(_checked(given, given))), given)


def _checked(path: str, given: str) -> str:
    try:
        check_characters(path, given)
    except ValueError as error:
        raise MemoryIndexError(str(error)) from error
    return path


def is_vacant(path: str) -> bool:
    """Whether a new index can be made at a path: nothing is there, or an empty folder.

    A link that leads nowhere is not nothing.

    Raises:
        OSError: the folder cannot be read.
    """
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


@contextmanager
def new_folder(target: str) -> Iterator[str]:
    """A folder to write to that appears at `target` once the block is left without an error.

    A process killed before that leaves nothing at `target`, and an error leaves nothing at all,
    neither the parents that were made for it.

    Raises:
        MemoryIndexError: `target` exists and is no empty folder, or cannot be written.
    """
    if not is_vacant(target):
        raise _exists(target)
    with failures_in(target, "creating the index"):
        written = False
        try:
            with writing.new_folder(target) as unfinished:
                yield os.fspath(unfinished)
                written = True
        except OSError:  # of the rename if all is written
            if written and os.path.isdir(target) and os.listdir(target):
                raise _exists(target) from None
            raise


def bytes_on_disk(path: str) -> int:
    """Sizes of all files of an index, without those that a commit renames at this moment.

    Views are no part of it, which can be made again, nor what a migration has made so far.
    """
    total = 0
    for folder, folders, names in os.walk(path):
        if folder == path:
            folders[:] = [name for name in folders if name not in (VIEWS, FOLDER)]
        for name in names:
            with suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(folder, name))
    return total


def _exists(target: str) -> MemoryIndexError:
    return MemoryIndexError(f"{target}: exists already; choose a new or an empty folder")
