"""Checks of numbers and texts that people pass, the same everywhere in `clara`."""

from __future__ import annotations

import math
from numbers import Integral, Real


def is_integer(value: object) -> bool:
    """Whether a value is an integer: Python's or numpy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number: Python's or numpy's, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def as_integer(value: object, name: str, *, least: int | None = None) -> int:
    """An integer as Python's own `int`, so that numpy's can be written to JSON too.

    Args:
        name: what the error calls the value.
        least: the smallest value that is accepted.

    Raises:
        TypeError: `value` is no integer; `True` and `4.0` are none.
        ValueError: it is below `least`.
    """
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)  # type: ignore[call-overload]
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return int(number)


def as_number(value: object, name: str) -> float:
    """A finite number as Python's own `float`.

    Raises:
        TypeError: `value` is no number; `True` is none.
        ValueError: it is infinite or not a number.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number}")
    return number


def surrogate_flaw(text: str) -> str | None:
    """What is wrong with a text that UTF-8 cannot hold, as the rest of a sentence; else None.

    Such a text holds half a surrogate pair, as `json` makes of a lone "\\ud83d".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return f"holds half a surrogate pair, \\u{code:04x}, at character {error.start}"
    return None


def check_characters(path: str, given: str) -> None:
    """Refuse a path with characters that Lance cannot have in the path of an index.

    Args:
        path: absolute.
        given: what the user wrote, for the message.

    Raises:
        ValueError: names the character.
    """
    for character in path:
        if ord(character) < 32 or ord(character) == 127:
            what = f"the control character {character!r}"
        elif "\ud800" <= character <= "\udfff":
            what = "a byte that is not UTF-8"
        else:
            continue
        beside = "" if character in given else f", which is {path!r},"
        raise ValueError(
            f"the path {given!r}{beside} holds {what}, which Lance does not allow in a path; "
            "choose another"
        )
