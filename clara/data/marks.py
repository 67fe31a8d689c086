"""Places in the text of a document, and the values of its metadata."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

Scalar = str | int | float | bool | None
"""A value of metadata."""


class Mark(NamedTuple):
    """A place in a text: where a page or the part below a heading begins.

    Attributes:
        offset: characters before it.
        label: "page 3", or a heading with a "#" for each of its levels, such as "## Rivers".
    """

    offset: int
    label: str


def place_of(marks: Sequence[Mark], offset: int) -> str | None:
    """The label of the page or heading that a character of a text stands in.

    Args:
        marks: by offset, as `clara.corpus.CorpusDocument.marks` has them.
        offset: characters before it.

    Returns:
        The last label at or before the offset, None before the first.

    Example:
        >>> place_of([Mark(0, "page 1"), Mark(120, "page 2")], 119)
        'page 1'
    """
    found = bisect_right(marks, offset, key=lambda mark: mark.offset)
    return marks[found - 1].label if found else None
