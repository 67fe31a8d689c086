"""A model measured every so many steps of its training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from clara import Clara
from clara.files.writing import write_text
from clara.training.folder import read_log

Record = dict[str, Any]


class Watch(TrainerCallback):
    """Measures every so many steps and after the last one; a run that is resumed goes on.

    Args:
        file: of a record each; those of steps that a resumed run does again are dropped.
        measure: figures of the model, by name.
        enough: ends the training after a record; by default none does.
    """

    def __init__(
        self,
        file: Path,
        every: int,
        measure: Callable[[Clara], dict[str, float]],
        enough: Callable[[Record], bool] = lambda record: False,
    ) -> None:
        self._file, self._every = file, every
        self._measure, self._enough = measure, enough

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = read_log(self._file) if self._file.exists() else []
        kept = [record for record in kept if record["step"] <= state.global_step]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._file, "".join(json.dumps(record) + "\n" for record in kept))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        # As the trainer itself computes.
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            found = self._measure(kwargs["model"].model)
        record = {"step": state.global_step, **found}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._enough(record):
            control.should_training_stop = True

    @property
    def records(self) -> list[Record]:
        """All that was measured so far."""
        return read_log(self._file)
