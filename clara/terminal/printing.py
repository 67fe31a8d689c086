"""Print safely: texts of documents and models may hold codes that steer a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

EMPTY_ANSWER = "(empty answer)"
UNTRAINED = (
    "The adapters are untrained: they compute what the backbone computes, so ranking and the "
    "answers from memory tokens are not meaningful yet. `clara train` trains them, see "
    "docs/training.md."
)

# Control characters but tab and newline, marks that reorder text, and half surrogate pairs.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with everything that could steer a terminal replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`printable`, with every run of white space made a single space."""
    return " ".join(printable(text).split())


def excerpt(text: str, longest: int = 240) -> str:
    """The beginning of a text, on one line."""
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def print_json(value: dict[str, Any]) -> None:
    """One object on one line; ASCII, so that no character of it can steer a terminal."""
    print(json.dumps(value, allow_nan=False))


def console() -> Console:
    """Standard output for `rich.text.Text` and tables; plain strings are not parsed for markup."""
    from rich.console import Console

    return Console(file=sys.stdout, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Print one line on standard error; a stream that is closed or full stops nothing."""
    with suppress(OSError, ValueError, AttributeError):
        print(one_line(text), file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether somebody watches standard error."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


class _Steps(logging.Handler):
    """Writes what the package says that it is trying to standard error, a line for each step."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def quiet_libraries() -> None:
    """Loading bars and warnings of transformers and the hub only where somebody watches.

    The hub is slow at times, so what is tried there is said everywhere.
    """
    steps = logging.getLogger("clara.backbone.hub")
    if not any(isinstance(handler, _Steps) for handler in steps.handlers):
        steps.addHandler(_Steps())
        steps.setLevel(logging.INFO)
    if is_terminal():
        return
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("bitsandbytes", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def size(count: int) -> str:
    """Bytes in a unit that fits, such as "15.2 MB"."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
