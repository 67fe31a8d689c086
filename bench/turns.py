"""Times of several calls in turns: the one timer of all benchmarks."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bench.device import synchronize

Call = Callable[[], Any]

_PAUSE = 0.01  # on a CPU: threads of OpenMP spin for some milliseconds after their work
_MOST_CALLS = 1000
_FROZEN_AT_FIRST = gc.get_freeze_count()  # a few hundred objects in some releases of Python


class Turns:
    """Seconds of calls, round by round.

    What slows the machine down for a while slows all of a round, and leaves their ratios nearly
    alone. Every other round goes backwards. Garbage is collected between rounds, not within.

    Args:
        calls: by name. A name with several has the same work on different inputs. Calls rotate
            through them, so that none benefits from a warm cache.
        device: the clock is stopped when its work is done.
        shortest: `warm` finds out how often calls that take less than so many seconds have to be
            repeated to take as long; 0 never repeats.
        events: the clock is that of a GPU, between CUDA events; launching calls is not timed as
            long as the GPU has work.

    Attributes:
        seconds: of one call.
        counts: how often a call is repeated.
    """

    def __init__(
        self,
        calls: Mapping[str, Call | Sequence[Call]],
        device: torch.device | None = None,
        shortest: float = 0.0,
        *,
        events: bool = False,
    ) -> None:
        self.calls = {name: [c] if callable(c) else [*c] for name, c in calls.items()}
        self.device = device or torch.device("cpu")
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}
        self.counts = dict.fromkeys(calls, 1)
        self._shortest, self._places = shortest, itertools.count()
        self._clock = self._by_events if events else self._by_clock

    def warm(self) -> Turns:
        """Run everything once, and once more where it is short, without keeping the times."""
        for name in self.calls:
            self._timed(name)
            if self._shortest:
                taken = max(self._timed(name), 1e-9)
                self.counts[name] = min(_MOST_CALLS, math.ceil(self._shortest / taken))
            self.seconds[name].clear()
        return self

    def run(self, rounds: int) -> Turns:
        with _no_garbage_collection():
            for number in range(rounds):
                self._round(self._order(number))
        return self

    def run_for(self, seconds: float, fewest: int, most: int) -> Turns:
        """As many rounds as fit into about so many seconds, within bounds."""
        begin = time.monotonic()
        with _no_garbage_collection():
            for number in range(most):
                self._round(self._order(number))
                done = number + 1
                if done >= fewest and (time.monotonic() - begin) * (done + 1) / done > seconds:
                    break
        return self

    def benchmark(self, fixture: Any, reported: str, rounds: int) -> Turns:
        """`run` by pytest-benchmark, which reports one of the calls."""
        left: list[str] = []
        numbers = itertools.count()

        def until_reported() -> None:
            self._round(left, collect=False)  # of the round before
            order = self._order(next(numbers))
            place = order.index(reported)
            self._round(order[:place])
            left[:] = order[place + 1 :]
            self._pause()

        with _no_garbage_collection():
            fixture.pedantic(lambda: self._timed(reported), setup=until_reported, rounds=rounds)
            self._round(left, collect=False)
        return self

    def _round(self, names: Iterable[str], *, collect: bool = True) -> None:
        if collect:
            gc.collect()
        for name in names:
            self._pause()
            self._timed(name)

    def _pause(self) -> None:
        if self.device.type == "cpu":
            time.sleep(_PAUSE)

    def _order(self, number: int) -> list[str]:
        return list(self.calls) if number % 2 == 0 else list(reversed(list(self.calls)))

    def _timed(self, name: str) -> float:
        taken = self._clock(name) / self.counts[name]
        self.seconds[name].append(taken)
        return taken

    def _by_clock(self, name: str) -> float:
        synchronize(self.device)
        begin = time.perf_counter()
        self._call(name)
        synchronize(self.device)
        return time.perf_counter() - begin

    def _by_events(self, name: str) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._call(name)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _call(self, name: str) -> None:
        calls = self.calls[name]
        for place in itertools.islice(self._places, self.counts[name]):
            calls[place % len(calls)]()

    def __contains__(self, name: str) -> bool:
        return name in self.calls

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def fastest(self, names: Iterable[str]) -> str | None:
        """The name with the lowest median; None where there is none."""
        return min((name for name in names if name in self), key=self.median, default=None)

    def ratio(self, name: str, other: str) -> float:
        """How many times as long `name` takes: the median of the rounds' ratios."""
        return median_ratio(self.seconds[name], self.seconds[other])


class _Freezing:
    """Whether what is there may be frozen and unfrozen again."""

    theirs = False

    @classmethod
    def is_theirs(cls) -> bool:
        """Whoever runs us froze something, which our unfreezing would end. Once so, it stays so:
        to count a million objects takes a tenth of a second."""
        cls.theirs = cls.theirs or gc.get_freeze_count() > _FROZEN_AT_FIRST
        return cls.theirs


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Of its own accord; what is there already is not even looked at between rounds."""
    enabled, theirs = gc.isenabled(), _Freezing.is_theirs()
    gc.collect()
    if not theirs:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not theirs:
            gc.unfreeze()
        if enabled:
            gc.enable()


def median_ratio(seconds: Iterable[float], others: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))
