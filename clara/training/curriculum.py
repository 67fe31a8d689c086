"""What a step of compression training reads: rates, lengths of texts and the task, by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from clara.config import ClaraConfig
from clara.errors import ClaraError
from clara.errors.checks import is_integer, is_number
from clara.training.moments import Moment


class CurriculumError(ClaraError, ValueError):
    """A curriculum is not usable; the message names the field, its value and what it may be."""


_SHARES = ("reconstruction", "numbers")


@dataclass(frozen=True)
class Lesson:
    """What one batch reads.

    Attributes:
        rate: tokens of text for one memory vector.
        text_tokens: longest piece of a document to repeat, in tokens; None is all of it.
        reconstruction: share of the examples whose task is to repeat the document.
        numbers: share of the examples whose task is to repeat a list of random numbers.
        averages_only: memory is averaged embeddings, without a pass of the compressor.
    """

    rate: int
    text_tokens: int | None
    reconstruction: float
    averages_only: bool
    numbers: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        until: step at which the phase ends; None is the end of the run.
        rates: rates and their weights, from which each batch draws; None draws all rates that
            the model trains, with equal weights.
        text_tokens: see `Lesson`.
        reconstruction: see `Lesson`; two values are the shares at the first and last step.
        numbers: see `Lesson`; the same.
        averages_only: see `Lesson`.
    """

    until: int | None = None
    rates: dict[int, float] | None = None
    text_tokens: int | None = None
    reconstruction: tuple[float, float] = (0.0, 0.0)
    averages_only: bool = False
    numbers: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, given: Any) -> Phase:
        """Read one phase of the settings.

        Raises:
            CurriculumError: a field is unknown or has no usable value.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(given, Mapping) or given.keys() - known:
            raise CurriculumError(
                f"curriculum: a phase has fields of {', '.join(sorted(known))}; got {given!r}"
            )
        values = dict(given)
        for name in ("until", "text_tokens"):
            value = values.get(name)
            if value is not None and not (is_integer(value) and value >= 1):
                raise CurriculumError(
                    f"curriculum: {name} must be null or a whole number of at least 1, "
                    f"got {value!r}"
                )
        if not isinstance(values.get("averages_only", False), bool):
            raise CurriculumError(
                f"curriculum: averages_only must be true or false, got {values['averages_only']!r}"
            )
        if values.get("rates") is not None:
            values["rates"] = _weights(values["rates"])
        shares = {name: _shares(name, values.get(name, 0.0)) for name in _SHARES}
        if any(sum(each) > 1 for each in zip(*shares.values(), strict=True)):
            raise CurriculumError(
                f"curriculum: {' and '.join(_SHARES)} must be at most 1 together, got {given!r}"
            )
        return cls(**{**values, **shares})


class Curriculum:
    """The phases of a training, one after the other.

    Args:
        phases: mappings with fields of `Phase`. Without phases, batches draw all rates that the
            model trains, and no document is repeated.

    Raises:
        CurriculumError: see `check_phases`; or the model does not train a rate, or has no averages
            for memory.
    """

    def __init__(self, config: ClaraConfig, phases: Any = None) -> None:
        self._phases = check_phases(phases) or [Phase()]
        self._trained = trained_rates(config)
        self._ends = [math.inf if p.until is None else p.until for p in self._phases]
        for phase in self._phases:
            for rate in phase.rates or ():
                if rate not in self._trained:
                    raise CurriculumError(
                        f"curriculum: rates must be of those that the model trains, "
                        f"{', '.join(map(str, self._trained))}; got {rate}"
                    )
            if phase.averages_only and config.memory_form != "spans":
                raise CurriculumError(
                    "curriculum: averages_only needs memory_form: spans; memory of this model has "
                    "no averages"
                )

    @property
    def varies(self) -> bool:
        """Whether there is anything to draw or to change: else every batch reads the same way."""
        return self._phases != [Phase()] or len(self._trained) > 1

    def at(self, moment: Moment) -> Lesson:
        """What the batch of a moment reads; the rate is drawn with the moment's seed."""
        place = next(i for i, end in enumerate(self._ends) if moment.step < end)
        phase = self._phases[place]
        start = self._ends[place - 1] if place else 0
        last = min(self._ends[place], max(moment.total, 1)) - 1  # the last step of the phase
        passed = min((moment.step - start) / (last - start), 1.0) if last > start else 1.0
        repeated, numbers = (
            first + (final - first) * passed
            for first, final in (phase.reconstruction, phase.numbers)
        )
        weights = phase.rates or dict.fromkeys(self._trained, 1.0)
        (rate,) = moment.random("rate").choices(list(weights), list(weights.values()))
        return Lesson(rate, phase.text_tokens, repeated, phase.averages_only, numbers)


def check_phases(phases: Any) -> list[Phase]:
    """Read the phases of the settings; None is no phase.

    Raises:
        CurriculumError: a field is unknown or has no usable value, `until` does not ascend, or a
            phase other than the last has none.
    """
    if phases is None:
        return []
    if not isinstance(phases, list | tuple):
        raise CurriculumError(f"curriculum must be a list of phases, got {phases!r}")
    read = [Phase.of(phase) for phase in phases]
    ends = [phase.until for phase in read]
    if ends and ends[-1] is not None:
        raise CurriculumError(
            "curriculum: until of the last phase must be null, for the end of the run; "
            f"got {ends[-1]}"
        )
    steps = [end for end in ends[:-1] if end is not None]
    if len(steps) < len(ends) - 1 or steps != sorted(set(steps)):
        shown = ", ".join("null" if end is None else str(end) for end in ends)
        raise CurriculumError(f"curriculum: until must ascend and end with null, got {shown}")
    return read


def trained_rates(config: ClaraConfig) -> tuple[int, ...]:
    """The rates that a model trains: in memory form "learned" its only one."""
    return config.rates if config.memory_form == "spans" else (config.compression_rate,)


def _weights(given: Any) -> dict[int, float]:
    weights: dict[Any, Any] = {}
    if isinstance(given, Mapping):
        weights = dict(given)
    elif isinstance(given, list | tuple):
        weights = dict.fromkeys((rate for rate in given if is_integer(rate)), 1.0)
    usable = len(weights) == len(given) if hasattr(given, "__len__") else False
    for rate, weight in weights.items():
        usable &= is_integer(rate) and rate >= 1
        usable &= is_number(weight) and math.isfinite(weight) and weight > 0
    if not (weights and usable):
        raise CurriculumError(
            "curriculum: rates must be a list of different rates such as [2, 4], or rates with "
            f"weights above 0 such as {{2: 1, 4: 3}}; got {given!r}"
        )
    return {int(rate): float(weight) for rate, weight in weights.items()}


def _shares(name: str, given: Any) -> tuple[float, float]:
    shares = list(given) if isinstance(given, list | tuple) else [given, given]
    if len(shares) != 2 or not all(is_number(s) and 0 <= s <= 1 for s in shares):
        raise CurriculumError(
            f"curriculum: {name} must be a share from 0 to 1, or a list of two, at the first and "
            f"the last step; got {given!r}"
        )
    return float(shares[0]), float(shares[1])
