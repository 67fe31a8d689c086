"""Progress, logs and early stopping of a run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clara.files.writing import write_text
from clara.terminal.printing import is_terminal, say
from clara.training.folder import LOG, read_log
from clara.training.trainer_library import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_COUNTER = "early_stopping_patience_counter"
_SHOWN = ("loss", "ce", "mse", "kl", "contrastive", "recall@1", "tokens_per_second")


class EarlyStopping(EarlyStoppingCallback):
    """The library's, which counts on where it was when a run is resumed.

    The library's own `restore_callback_states_from_checkpoint` would also bring back the patience
    that the run had before, and `patience` may change when a run is resumed.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        self.early_stopping_patience_counter = saved.get("attributes", {}).get(_COUNTER, 0)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class BeforeStep(TrainerCallback):
    """Has the step's loss looked at before the weights are touched, gradients clipped or not.

    And ends a run that is resumed after its last step, where the library would do one more, and
    logs, evaluates and saves as often as a resumed run is told to, not as often as before.

    Args:
        look: raises an error if the loss is not a number to learn from.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        state.compute_steps(args, state.max_steps)
        if state.global_step >= state.max_steps:
            control.should_training_stop = True

    def on_pre_optimizer_step(self, *arguments: Any, **kwargs: Any) -> None:
        self._look()


class RunLog(TrainerCallback):
    """Appends every record that is logged to `log.jsonl` in the run's folder."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Drop records of steps after the checkpoint that the run resumes from."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / LOG
        kept = (
            [r for r in read_log(path) if r["step"] <= state.global_step] if path.exists() else []
        )
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            record = json.dumps({"step": state.global_step, **logs})
            with open(Path(args.output_dir) / LOG, "a", encoding="utf-8") as file:
                file.write(record + "\n")


class RichProgress(TrainerCallback):
    """A bar over the steps on a terminal, with the last record beside it; quiet in a pipe."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not is_terminal():
            return
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._task = self._bar.add_task(
            "train", total=state.max_steps, completed=state.global_step, detail=""
        )
        self._bar.start()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._bar is not None and logs and "loss" in logs:
            detail = "  ".join(f"{name} {logs[name]:.4g}" for name in _SHOWN if name in logs)
            self._bar.update(self._task, detail=detail)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Also called when training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress(TrainerCallback):
    """A line on standard error every so often where that is no terminal: a log of a job.

    The first step has one, the last has one, and in between there is at most one in `interval`.

    Args:
        interval: seconds.
        clock: seconds that never run backwards.
    """

    def __init__(self, interval: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._wanted = False
        self._shown_step = -1
        self._loss: float | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._wanted = state.is_world_process_zero and not is_terminal()
        self._began = self._last = self._clock()
        self._first_step = self._shown_step = state.global_step

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not control.should_log:  # else its record comes next, with the loss
            self._tell(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._loss = logs["loss"]
            self._tell(state)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._wanted and state.global_step > self._first_step:
            took = _duration(self._clock() - self._began)
            say(f"train: step {state.global_step}/{state.max_steps}{self._shown_loss()}, {took}")
        self._wanted = False

    def _tell(self, state: TrainerState) -> None:
        now = self._clock()
        first = self._shown_step == self._first_step
        if not self._wanted or state.global_step >= state.max_steps:
            return  # the last step is told at the end
        if not first and now - self._last < self._interval:
            return
        self._last, self._shown_step = now, state.global_step
        done = state.global_step - self._first_step
        left = (now - self._began) / done * (state.max_steps - state.global_step)
        say(
            f"train: step {state.global_step}/{state.max_steps}{self._shown_loss()}, "
            f"about {_duration(left)} left"
        )

    def _shown_loss(self) -> str:
        return "" if self._loss is None else f", loss {self._loss:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
