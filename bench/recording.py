"""Measurements of a run, kept in a file of results as they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import measured_ceilings
from bench.turns import Turns
from clara.reports.results import Measurement, Parameter, Promise, Results, read_results

Amounts = Mapping[str, float]


class Recorder:
    """Adds measurements to `results` and writes the file anew each time.

    Args:
        path: of the file; None keeps results in memory only.
        copies: further files of the same content.
    """

    def __init__(
        self, path: Path | None, environment: Mapping[str, Any], copies: Iterable[Path] = ()
    ) -> None:
        self.path, self.copies = path, list(copies)
        self.results = Results(dict(environment))

    def resume(self) -> None:
        """Go on with what the file holds.

        Raises:
            ResultsError: there is no such file, or it holds no results.
        """
        assert self.path is not None
        self.results = read_results(self.path)

    def add(self, measurement: Measurement) -> Measurement:
        self.results.measurements.append(measurement)
        self.save()
        return measurement

    def seconds(
        self,
        suite: str,
        case: str,
        samples: Mapping[str, Sequence[float]],
        parameters: Mapping[str, Parameter],
        amounts: Amounts | None = None,
        of_each: Mapping[str, Amounts] | None = None,
    ) -> None:
        """What was timed in turns, a measurement for each implementation.

        Args:
            samples: seconds by implementation; those of a round at the same place.
            amounts: what a call does, whoever does it ("documents", "tokens", "bytes", "flops").
            of_each: what differs, by implementation.
        """
        for name, taken in samples.items():
            own = (of_each or {}).get(name, {})
            quantities = {**(amounts or {}), **own}
            found = Measurement(
                suite, case, name, dict(parameters), samples=list(taken), quantities=quantities
            )
            self.add(found)

    def turns(self, suite: str, case: str, turns: Turns, *arguments: Any, **named: Any) -> None:
        """`seconds` of all calls."""
        self.seconds(suite, case, turns.seconds, *arguments, **named)

    def memory(
        self, suite: str, case: str, peaks: Mapping[str, int], **parameters: Parameter
    ) -> None:
        """Bytes at the peak, by implementation."""
        for name, peak in peaks.items():
            samples = [float(peak)]
            self.add(Measurement(suite, case, name, dict(parameters), "bytes", samples))

    def withhold(
        self, suite: str, case: str, implementation: str, reason: str, **parameters: Parameter
    ) -> None:
        """No figure, for a reason that the report states."""
        found = Measurement(suite, case, implementation, dict(parameters), withheld=reason)
        self.add(found)

    def promise(self, promise: Promise) -> None:
        self.results.promises.append(promise)
        self.save()

    def measure_ceilings(self, device: torch.device, *, tiny: bool = False) -> None:
        self.results.ceilings = measured_ceilings(device, tiny=tiny)
        self.save()

    def save(self) -> None:
        for path in self.copies if self.path is None else (self.path, *self.copies):
            self.results.write(path)
