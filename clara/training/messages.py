"""Lines that a run says on standard error."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print one line on standard error; a stream that is closed or full is no error of the run."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether somebody watches standard error."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False
