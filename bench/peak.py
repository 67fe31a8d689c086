"""Peak memory of a way to do something, in a fresh process."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.apart import apart

_PROCESS = Path("/proc/self")


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes that a function needs at its peak, beyond what it has before, in a fresh process.

    Resident memory as the kernel counts it: whoever allocates, and fragmentation, is included.
    Linux only.

    Args:
        prepare: called there with `arguments`; returns the function to measure. What it loads and
            touches is not counted. Pickled, so a function of a module.
    """
    _give_back()  # this process may have measured something large before
    peak: int = apart(_peak, prepare, arguments)
    return peak


def _give_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _peak(prepare: Callable[..., Callable[[], object]], arguments: Any) -> int:
    function = prepare(*arguments)
    _give_back()
    before = resident()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        peak = _sampled_peak(function)
    else:
        function()
        peak = _status("VmHWM")
    return peak - before


def _sampled_peak(function: Callable[[], object]) -> int:
    """The largest resident size seen while `function` runs, looked at every 2 ms."""
    done = threading.Event()
    seen = [resident()]

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(max(seen.pop(), resident()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return seen[0]


def resident() -> int:
    """Bytes of this process that lie in RAM. Linux only."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in (_PROCESS / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
