"""Times of several calls in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

_PAUSE = 0.01  # threads of OpenMP spin for some milliseconds after their work


class Turns:
    """Seconds of calls, round by round.

    What slows the machine down for a while slows all of a round, and leaves their ratios nearly
    alone. Every other round goes backwards.

    Args:
        device: a clock is stopped when its work is done.
    """

    def __init__(
        self, calls: Mapping[str, Callable[[], Any]], device: torch.device | None = None
    ) -> None:
        self.calls, self.device = calls, device or torch.device("cpu")
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}

    def run(self, rounds: int) -> Turns:
        for number in range(rounds):
            gc.collect()
            self.round(self.calls if number % 2 == 0 else reversed(list(self.calls)))
        return self

    def benchmark(self, fixture: Any, reported: str, rounds: int) -> Turns:
        """The same by pytest-benchmark, which reports one of the calls, the last of each round."""
        others = [name for name in self.calls if name != reported]

        def run_others() -> None:
            gc.collect()
            self.round(others)
            others.reverse()
            time.sleep(_PAUSE)

        fixture.pedantic(lambda: self._timed(reported), setup=run_others, rounds=rounds)
        return self

    def round(self, names: Iterable[str]) -> None:
        for name in names:
            time.sleep(_PAUSE)
            self._timed(name)

    def _timed(self, name: str) -> None:
        self._synchronize()
        begin = time.perf_counter()
        self.calls[name]()
        self._synchronize()
        self.seconds[name].append(time.perf_counter() - begin)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __contains__(self, name: str) -> bool:
        return name in self.calls

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def fastest(self, names: Iterable[str]) -> str | None:
        """That of the lowest median; None of none."""
        return min((name for name in names if name in self), key=self.median, default=None)

    def ratio(self, name: str, other: str) -> float:
        """How many times as long `name` takes: the median of the rounds' ratios."""
        return median_ratio(self.seconds[name], self.seconds[other])


def median_ratio(seconds: Iterable[float], others: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))
