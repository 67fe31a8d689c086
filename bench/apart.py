"""Measure in a fresh process."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ABOVE_BENCH = str(Path(__file__).resolve().parents[1])


def apart(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What `measure(*arguments)` returns in a process that is started for it.

    Args:
        measure: pickled, as its arguments and its result are, so a function of a module.

    Raises:
        RuntimeError: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, measure, arguments))
    with _importable():
        process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with {process.exitcode}") from None
    process.join()
    return found


def _send(sender: Any, measure: Callable[..., Any], arguments: Any) -> None:
    sender.send(measure(*arguments))


@contextmanager
def _importable() -> Iterator[None]:
    """`bench` is importable in processes that start within the block: they get this `sys.path`."""
    before = list(sys.path)  # which may have that folder already, in a place that matters
    sys.path.append(_ABOVE_BENCH)
    try:
        yield
    finally:
        sys.path[:] = before
