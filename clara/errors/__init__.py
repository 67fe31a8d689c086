"""`ClaraError`, the base of every kind of error that this package defines."""

from __future__ import annotations

LONGEST_REASON = 200
"""Characters of a library's message that one of ours quotes."""


class ClaraError(Exception):
    """An error in what a program is given from outside: a file, a model, an answer of a server.

    The message is one line. Each kind of error derives from this class and from the built-in class
    that fits, such as ValueError: `except ValueError` catches it too. An argument that is wrong by
    itself, such as `top_k=0`, is a plain TypeError or ValueError, as everywhere in Python.
    """


class SavedModelError(ClaraError, ValueError):
    """A model folder, its settings or its weights are missing, damaged, or do not fit."""


def reason(
    error: BaseException, longest: int | None = LONGEST_REASON, *, first_line: bool = False
) -> str:
    """What an error says, on one line; the name of its class if it says nothing.

    Args:
        longest: characters, after which the text is cut; None keeps all of it.
        first_line: leave out the lines after the first. Compilers and servers put whole listings
            there.
    """
    text = str(error).strip()
    line = " ".join((text.partition("\n")[0] if first_line else text).split())
    line = line or type(error).__name__
    return line if longest is None else shortened(line, longest)


def shortened(text: str, longest: int) -> str:
    """A text as a message quotes it: a longer one is cut, and an ellipsis is its last character."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
