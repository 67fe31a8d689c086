"""How much of the chain is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.learning.stages import STEPS

SEED_OF_QUESTIONS = 5
"""Of the questions that are evaluated. Those that `bench.learning` looks at, by which its settings
were chosen, and those that its figures were checked on have other seeds."""


@dataclass(frozen=True)
class Size:
    """One of `SIZES`.

    Attributes:
        steps: of each stage of `bench.learning`. The text baseline has those of "instruct".
        questions: that are held out and evaluated.
        every: steps between two looks at what a stage has learnt.
        watched: questions of such a look, which are others than those evaluated.
        proves: False where the figures mean nothing.
    """

    steps: Mapping[str, int] = field(default_factory=lambda: dict(STEPS))
    questions: int = 512
    every: int = 500
    watched: int = 128
    proves: bool = True


SIZES = {
    "tiny": Size(),
    "smoke": Size(dict.fromkeys(STEPS, 2), questions=8, every=2, watched=4, proves=False),
}
