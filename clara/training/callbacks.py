"""What is shown and written while a run goes on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

LOG = "log.jsonl"
_COUNTER = "early_stopping_patience_counter"
_SHOWN = ("loss", "ce", "mse", "contrastive", "recall@1", "tokens_per_second")


class EarlyStopping(EarlyStoppingCallback):
    """The library's, which counts on where it was when a run is resumed."""

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
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(temporary, path)

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


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that a kill cut off is left out.

    Raises:
        ValueError: a line before the last is not a record.
    """
    records: list[dict[str, Any]] = []
    written = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(written, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            if number == len(written):
                break
            raise ValueError(f"{path}:{number}: is not a record of a run") from error
        records.append(record)
    return records


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
        if not state.is_world_process_zero or not sys.stderr.isatty():
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
