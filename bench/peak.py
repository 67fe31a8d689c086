"""Peak memory of a way to do something, in a fresh process."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")
_ABOVE_BENCH = str(Path(__file__).resolve().parents[1])


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes that a function needs at its peak, beyond what it has before, in a fresh process.

    Resident memory as the kernel counts it: whoever allocates, and fragmentation, is included.
    Linux only.

    Args:
        prepare: called there with `arguments`; returns the function to measure. What it loads and
            touches is not counted. Pickled, so a function of a module.
    """
    _give_back()  # this process may have measured something large before
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, prepare, arguments))
    with importable():
        process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with {process.exitcode}") from None
    process.join()
    return peak


@contextmanager
def importable() -> Iterator[None]:
    """`bench` is importable in processes that start within the block: they get this `sys.path`."""
    before = list(sys.path)  # which may have that folder already, in a place that matters
    sys.path.append(_ABOVE_BENCH)
    try:
        yield
    finally:
        sys.path[:] = before


def _give_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _measure_peak(
    sender: Any, prepare: Callable[..., Callable[[], object]], arguments: Any
) -> None:
    function = prepare(*arguments)
    _give_back()
    before = _resident()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        peak = _sampled_peak(function)
    else:
        function()
        peak = _status("VmHWM")
    sender.send(peak - before)


def _sampled_peak(function: Callable[[], object]) -> int:
    """The largest resident size seen while `function` runs, looked at every 2 ms."""
    done = threading.Event()
    seen = [_resident()]

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(max(seen.pop(), _resident()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return seen[0]


def _resident() -> int:
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in (_PROCESS / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
