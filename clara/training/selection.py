"""The schedule of the differentiable selection in end-to-end training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from clara.config import CHOICES, ClaraConfig
from clara.errors.checks import is_number

_CHOSEN = ("relaxation", "mask", "noise")  # from a few words, as in the configuration


@dataclass(frozen=True)
class Selection:
    """Arguments of `select_topk` at one step."""

    temperature: float
    relaxation: str
    mask: str
    noise: str | None


@dataclass(frozen=True)
class Phase:
    """Selection over a part of the training.

    Attributes:
        until: share of all steps at which the phase ends.
        temperature: at its beginning.
        temperature_end: at its end, reached geometrically; None keeps it as it is.
        relaxation, mask, noise: as in `ClaraConfig`.
    """

    until: float
    temperature: float
    temperature_end: float | None
    relaxation: str
    mask: str
    noise: str | None

    def __post_init__(self) -> None:
        for name in ("until", "temperature", "temperature_end"):
            value = getattr(self, name)
            if name == "temperature_end" and value is None:
                continue
            if not is_number(value) or not math.isfinite(value) or value <= 0:
                raise ValueError(f"selection: {name} must be a positive number, got {value!r}")
        for name in _CHOSEN:
            choices = CHOICES[name]
            if getattr(self, name) not in choices:
                known = ", ".join("null" if c is None else c for c in choices)
                raise ValueError(
                    f"selection: {name} must be one of {known}; got {getattr(self, name)!r}"
                )

    def at(self, share: float) -> Selection:
        """Args: share: of the phase that has passed, from 0 to 1."""
        last = self.temperature if self.temperature_end is None else self.temperature_end
        temperature = self.temperature * (last / self.temperature) ** share
        return Selection(temperature, self.relaxation, self.mask, self.noise)


class SelectionSchedule:
    """The phases of a training, one after the other.

    Args:
        phases: mappings with fields of `Phase`; what one leaves out is as in the model's
            configuration, `until` is 1. Without phases, everything is as in the configuration.

    Raises:
        ValueError: a field is unknown or has no usable value, or the phases do not end at 1 in
            ascending order.
    """

    def __init__(
        self, config: ClaraConfig, phases: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        defaults = {
            "until": 1.0,
            "temperature": config.temperature,
            "temperature_end": None,
            "relaxation": config.relaxation,
            "mask": config.mask,
            "noise": config.noise,
        }
        known = {field.name for field in fields(Phase)}
        if not isinstance(phases, list | tuple | None):
            raise ValueError(f"selection must be a list of phases, got {phases!r}")
        self._phases = []
        for phase in phases or [{}]:
            if not isinstance(phase, Mapping) or phase.keys() - known:
                raise ValueError(
                    f"selection: a phase has fields of {', '.join(sorted(known))}; got {phase!r}"
                )
            self._phases.append(Phase(**{**defaults, **phase}))
        ends = [phase.until for phase in self._phases]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"selection: 'until' must ascend and end at 1, got {ends}")

    def at(self, progress: float) -> Selection:
        """Args: progress: share of all steps done, from 0 to 1."""
        start = 0.0
        for phase in self._phases:
            if progress < phase.until or phase is self._phases[-1]:
                share = (progress - start) / (phase.until - start)
                return phase.at(min(max(share, 0.0), 1.0))
            start = phase.until
        raise AssertionError("the last phase ends at 1")
