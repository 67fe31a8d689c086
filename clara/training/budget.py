"""Hours and positions that a run has taken, over all its resumes, and the end of its budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from clara.terminal.printing import say
from clara.training.trainer_library import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_KEY = "taken"  # among the callbacks' entries in a checkpoint's trainer_state.json


class Budget(TrainerCallback):
    """Counts what a run takes, and stops it with a checkpoint once its hours are over.

    A run that is evaluated is evaluated then too.

    Attributes:
        positions: that went through the backbone, of all processes.

    Args:
        max_hours: of wall time, from the beginning of training on, evaluations and checkpoints
            included; None has no end.
        anywhere: whether something holds in any process; all have to stop together.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        max_hours: float | None,
        anywhere: Callable[[bool], bool] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = max_hours
        self._anywhere = anywhere
        self._clock = clock
        self._before = 0.0
        self._began: float | None = None
        self._is_over = False
        self.positions = 0

    @property
    def hours(self) -> float:
        """The hours of wall time that training took, before it was resumed too."""
        now = 0.0 if self._began is None else self._clock() - self._began
        return (self._before + now) / 3600

    def write(self, state: TrainerState) -> None:
        """Put what was taken into the state that a checkpoint gets."""
        taken = {"hours": self.hours, "positions": self.positions}
        state.stateful_callbacks[_KEY] = taken

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        callbacks: Any = state.stateful_callbacks
        taken = callbacks.get(_KEY, {})
        self._before = 3600 * float(taken.get("hours", 0.0))
        self.positions = int(taken.get("positions", 0))
        # What earlier parts of the run took, not the moments since this one began.
        if self._over():
            control.should_training_stop = True
        self._began = self._clock()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.global_step < state.max_steps and self._over():
            control.should_log = control.should_save = control.should_training_stop = True
            control.should_evaluate |= args.eval_strategy != "no"

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._is_over and state.is_world_process_zero:
            say(
                f"train: max_hours {self._limit:g} is over after step {state.global_step} of "
                f"{state.max_steps}; it is saved, and goes on with --resume and more hours"
            )

    def _over(self) -> bool:
        if self._limit is not None:
            self._is_over = self._anywhere(self.hours >= self._limit)
        return self._is_over
