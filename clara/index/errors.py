"""Errors of an index, and how failures inside Lance become such errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from clara.errors import LONGEST_REASON, ClaraError, reason, shortened

_SOURCE_LOCATION = re.compile(r",? ?\S+\.rs:\d+(:\d+)?")


class MemoryIndexError(ClaraError, ValueError):
    """An index cannot be opened, written or searched, or is damaged. The message is one line."""


class DuplicateIdError(MemoryIndexError):
    """Documents were not added because the index already holds their ids.

    Attributes:
        ids: all of those ids.
    """

    def __init__(self, ids: list[str]) -> None:
        more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
        super().__init__(f"document {ids[0]!r} is in the index already{more}")
        self.ids = ids

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return type(self), (self.ids,)


@contextmanager
def failures_in(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn what Lance and Arrow raise into a MemoryIndexError "PATH: `doing` failed: reason".

    A damaged file can make Lance's Rust code panic, which arrives as a BaseException.
    """
    try:
        yield
    except (MemoryIndexError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise MemoryIndexError(f"{path}: {doing} failed: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The message on one line, without Lance's source locations."""
    line = _SOURCE_LOCATION.sub("", reason(error, None)) or type(error).__name__
    return shortened(line, LONGEST_REASON)
