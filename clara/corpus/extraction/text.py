"""A text that grows piece by piece, with marks and a limit."""

from __future__ import annotations

import re

from clara.corpus.documents import Extracted
from clara.corpus.limits import Limits
from clara.data.marks import Mark
from clara.data.values import DataError

_TITLE = 300  # characters
# What no text has and files have all the same: control characters but tab, newline and return.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Growing:
    """Blocks of text, an empty line between two of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: list[str] = []
        self._marks: list[Mark] = []
        self._length = 0  # characters
        self._bytes = 0

    def add(self, block: str, *, mark: str | None = None, between: str = "\n\n") -> None:
        """Put a block at the end; nothing where it is blank.

        Args:
            mark: label of what begins with it.
            between: what separates it from the block before.

        Raises:
            DataError: the text is over the limit.
        """
        text = clean(block).strip()
        if not text:
            return
        if self._pieces:
            text = between + text
        begin = self._length + (len(between) if self._pieces else 0)
        self._pieces.append(text)
        self._length += len(text)
        self._bytes += len(text.encode())
        if self._bytes > self._limits.document_bytes:
            raise DataError(self._limits.too_long("the text"))
        if mark is not None:
            self._marks.append(Mark(begin, mark))

    def done(self, title: str | None, nothing: str) -> Extracted:
        """The document.

        Args:
            title: as it was found; a blank one is none.
            nothing: the message where there is no text.

        Raises:
            DataError: there is no text.
        """
        if not self._pieces:
            raise DataError(nothing)
        return Extracted("".join(self._pieces), one_line(title), tuple(self._marks))


def clean(text: str) -> str:
    """A text without control characters, in which UTF-8 can hold every character.

    Files hold halves of surrogate pairs; two that belong together become one character.
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub("", whole)


def one_line(title: str | None) -> str | None:
    """A title on one line; None where it is blank."""
    return (" ".join(clean(title or "").split())[:_TITLE].rstrip()) or None


def heading_mark(level: int, text: str) -> str | None:
    """The label of a heading; None where it says nothing."""
    label = one_line(text)
    return None if label is None else f"{'#' * min(max(level, 1), 6)} {label}"
