"""Times of several calls in turns."""

from __future__ import annotations

import gc
import itertools
import math
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
        shortest: calls that take less than so many seconds are repeated for as long; 0 never.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[[], Any]],
        device: torch.device | None = None,
        shortest: float = 0.0,
    ) -> None:
        self.calls, self.device = calls, device or torch.device("cpu")
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}
        self._shortest, self._counts = shortest, dict.fromkeys(calls, 1)

    def warm(self) -> Turns:
        """Run everything once, and once more where it is short, without keeping the times."""
        for name in self.calls if self._shortest else ():
            self._timed(name)
            taken = self._timed(name)
            self._counts[name] = max(1, min(1000, math.ceil(self._shortest / max(taken, 1e-9))))
        for name in self.calls if not self._shortest else ():
            self._timed(name)
        for seconds in self.seconds.values():
            seconds.clear()
        return self

    def run(self, rounds: int) -> Turns:
        for number in range(rounds):
            gc.collect()
            self.round(self._order(number))
        return self

    def benchmark(self, fixture: Any, reported: str, rounds: int) -> Turns:
        """The same by pytest-benchmark, which reports one of the calls."""
        left: list[str] = []
        numbers = itertools.count()

        def until_reported() -> None:
            self.round(left)  # of the round before
            gc.collect()
            order = self._order(next(numbers))
            place = order.index(reported)
            self.round(order[:place])
            left[:] = order[place + 1 :]
            time.sleep(_PAUSE)

        fixture.pedantic(lambda: self._timed(reported), setup=until_reported, rounds=rounds)
        self.round(left)
        return self

    def round(self, names: Iterable[str]) -> None:
        for name in names:
            time.sleep(_PAUSE)
            self._timed(name)

    def _order(self, number: int) -> list[str]:
        return list(self.calls) if number % 2 == 0 else list(reversed(list(self.calls)))

    def _timed(self, name: str) -> float:
        call, count = self.calls[name], self._counts[name]
        self._synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        self._synchronize()
        taken = (time.perf_counter() - begin) / count
        self.seconds[name].append(taken)
        return taken

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
