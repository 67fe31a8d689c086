"""Rules for the values of a record: the same for JSON lines and for objects in memory.

Records come from files, from `json`, from pandas and from `datasets`. A table writes an empty cell
as NaN, and a column of ids with a gap holds floats. None of this may end up as text in an index.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from clara.errors import ClaraError, shortened
from clara.errors.checks import is_integer, surrogate_flaw

_LONGEST_SHOWN = 80  # characters of a value quoted in a message
_EMPTY_CELLS = ("NAType", "NaTType")  # of pandas, which is not imported for it


class DataError(ClaraError, ValueError):
    """A record cannot be read. The message is one line: file, line number, reason."""


def is_missing(value: Any) -> bool:
    """Whether a value is how a table or JSON writes "nothing": None, NaN, pandas' NA and NaT."""
    if value is None or type(value).__name__ in _EMPTY_CELLS:
        return True
    return isinstance(value, Real) and bool(value != value)


def as_text(value: Any, what: str, expected: str = "a string") -> str:
    """A string that UTF-8 can hold, as a plain `str`.

    Args:
        what: the value's name, which the message begins with.

    Raises:
        DataError: it is of another type or holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} must be {expected}, got {kind(value)}")
    if flaw := surrogate_flaw(value):
        raise DataError(f"{what} {flaw}")
    return str(value)


def as_id(value: Any, what: str) -> str:
    """An id: a string with something in it; an integer becomes its decimal digits.

    Raises:
        DataError: as `as_text`; also for a float (such as 1.0), a truth value and NaN.
    """
    if is_integer(value):
        return str(int(value))
    text = as_text(value, what, "a string or an integer")
    if not text.strip():
        raise DataError(f"{what} is empty")
    return text


def as_title(value: Any, what: str) -> str | None:
    """A title: a string, or None where there is none; NaN is none.

    Raises:
        DataError: as `as_text`.
    """
    return None if is_missing(value) else as_text(value, what)


def kind(value: Any) -> str:
    """How JSON calls a value; the type's name where JSON has no such value."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, Real):
        return f"the number {shown(str(value), quoted=False)}"
    return type(value).__name__


def shown(value: str, *, quoted: bool = True) -> str:
    """A value as it stands in a message."""
    return shortened(repr(value) if quoted else value, _LONGEST_SHOWN)
