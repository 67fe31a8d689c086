"""Times and peak memory of two ways to do the same thing."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


@dataclass
class Comparison:
    """Seconds of two ways, round by round, and what they returned last."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    our_result: Any = None
    their_result: Any = None

    @property
    def ratios(self) -> list[float]:
        """How many times as long theirs took, in each round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(
    benchmark: Any, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> Comparison:
    """Time two functions in turns, theirs, ours, theirs, ours, …

    What slows the machine down for a while then slows down both, and leaves the ratio of a round
    nearly alone. `benchmark`, the fixture of pytest-benchmark, reports ours.
    """
    comparison = Comparison()

    def run_theirs() -> None:
        comparison.their_result = _timed(theirs, comparison.theirs)

    def run_ours() -> None:
        comparison.our_result = _timed(ours, comparison.ours)

    benchmark.pedantic(run_ours, setup=run_theirs, rounds=rounds)
    return comparison


def _timed(function: Callable[[], Any], seconds: list[float]) -> Any:
    gc.collect()
    begin = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - begin)
    return result


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes that a function needs at its peak, beyond what it has before, in a fresh process.

    Resident memory as the kernel counts it: whoever allocates, and fragmentation, is included.
    Linux only.

    Args:
        prepare: called there with `arguments`; returns the function to measure. What it loads and
            touches is not counted. Pickled, so a function of a module.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, prepare, arguments))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with {process.exitcode}") from None
    process.join()
    return peak


def _measure_peak(
    sender: Any, prepare: Callable[..., Callable[[], object]], arguments: Any
) -> None:
    function = prepare(*arguments)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
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
