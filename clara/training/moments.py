"""Moments of a run: batches that depend on the step are made when the step begins."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Moment:
    """When a batch is made.

    Attributes:
        step: optimizer steps done before it.
        total: optimizer steps of the run.
        seed: differs between steps, between the batches of a step and between processes; the same
            after resuming.
    """

    step: int
    total: int
    seed: int

    def random(self, purpose: str) -> random.Random:
        """A generator for one purpose; what is drawn for another does not change its numbers."""
        return random.Random(f"{purpose} {self.seed}")


def asks_for_moment(collator: Callable[..., Any]) -> bool:
    """Whether a collator is called with examples and a `Moment`, in the trainer's own process.

    It says so with an attribute `asks_for_moment`. A data loader collates ahead of the step, and
    perhaps in another process: it hands the examples on to such a collator as they are.
    """
    return bool(getattr(collator, "asks_for_moment", False))


def rates_of(collator: Callable[..., Any]) -> tuple[int, ...]:
    """The compression rates of which a collator draws one for each batch; none if it does not.

    It names them in an attribute `rates`, and takes one of them as an argument `rate`. An
    evaluation goes through all of them, so that it is the same each time.
    """
    return tuple(getattr(collator, "rates", ()))
