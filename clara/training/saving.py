"""Checkpoints of a run: model folders, complete or not there, without any pickle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from clara.files.writing import replace_folder
from clara.model.checkpoint import take_part
from clara.training import state
from clara.training.budget import Budget
from clara.training.folder import REPLACED, UNFINISHED, checkpoints, write_record
from clara.training.objectives import Objective
from clara.training.trainer_library import (
    ExportableState,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class SaveByTime(TrainerCallback):
    """Saves a checkpoint after so many minutes without one.

    Args:
        minutes: of wall time since training began or was resumed, or since the last checkpoint.
        anywhere: whether something holds in any process; all have to save together.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        minutes: float,
        anywhere: Callable[[bool], bool] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = 60 * minutes
        self._anywhere = anywhere
        self._clock = clock
        self._last = clock()

    def on_train_begin(self, *arguments: Any, **kwargs: Any) -> None:
        self._last = self._clock()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        control.should_save |= self._anywhere(self._clock() - self._last >= self._seconds)

    def on_save(self, *arguments: Any, **kwargs: Any) -> None:
        self._last = self._clock()


class OwedEvaluation(TrainerCallback):
    """Makes the evaluation that a run was killed in, when the run is resumed.

    Args:
        evaluate: evaluates, and writes the checkpoint again with the scores.
    """

    def __init__(self, evaluate: Callable[[], None]) -> None:
        self._evaluate = evaluate

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        callbacks: Any = state.stateful_callbacks
        saved = callbacks.get(TrainerControl.__name__, {}).get("args", {})
        owed = saved.get("should_evaluate") and args.eval_strategy != "no"
        if owed and state.global_step:
            self._evaluate()


class SavingTrainer(Trainer):
    """transformers' trainer with checkpoints of our own.

    They are model folders that `Clara.from_pretrained` reads, with the state of the run beside
    them, appear only when complete, and hold no pickle.

    Attributes:
        objective: what is trained.
        record: settings and data of the run, which go into every checkpoint.
        budget: counts what the run takes, which goes into every checkpoint.
    """

    objective: Objective
    budget: Budget
    record: Mapping[str, Any] | None
    _saved_before = False

    @property
    def _shards(self) -> bool:
        """The optimizer's state is spread over processes, and saved as FSDP or DeepSpeed does."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _prepare_for_training(self, *arguments: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments)
        self._collect()
        return prepared

    def _collect(self) -> None:
        if self.is_fsdp_enabled:
            self.objective.model.adapters.collect(self.objective.model.backbone)

    def _evaluate(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        known = self._scores()
        if known:  # as where the end of the hours and that of an epoch both ask for an evaluation
            self.control.should_evaluate = self._saved_before = False
            return known
        # An evaluation can take minutes: a kill during one must not cost the steps before it. The
        # checkpoint says that an evaluation is owed, and is written again with the scores.
        self._saved_before = self.control.should_save
        if self._saved_before:
            self._save_checkpoint(self.model, None)
        metrics: dict[str, float] = super()._evaluate(*arguments, **settings)
        return metrics

    def _scores(self) -> dict[str, float]:
        """The scores of the evaluation that the run has made at this step; empty without one."""
        metric = "eval_" + (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        for record in reversed(self.state.log_history):
            if record.get("step") != self.state.global_step:
                break
            if metric in record:
                return {k: v for k, v in record.items() if k.startswith("eval_")}
        return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # The base saves where this is true and save_strategy is "best"; so must be what was saved
        # before the evaluation.
        return bool(super()._determine_best_metric(metrics, trial)) or self._saved_before

    def evaluate_resumed(self) -> None:
        """Evaluate the checkpoint that the run is resumed from, and write it with the scores."""
        self._load_rng_state(str(self._last_step()))
        metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics=metrics, trial=None)
        self._save_checkpoint(self.model, None)

    def _last_step(self) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        final = self._last_step()
        best = final.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == final or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        with self._written_together(final) as unfinished:
            self._save_weights(unfinished)
            state.save_random_state(unfinished, self.accelerator.process_index)
            self._save_run(unfinished)
            if self.args.should_save:
                self._update_callback_states()
                self.state.save_to_json(str(unfinished / "trainer_state.json"))
                if self.record is not None:
                    write_record(unfinished, self.record)
        if self.args.should_save:
            self._remove_old()
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _written_together(self, final: Path) -> Iterator[Path]:
        """A folder that all processes write to; it appears at `final` when all of them are done."""
        unfinished = final.with_name(UNFINISHED + final.name)
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        yield unfinished
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            replace_folder(unfinished, final, final.with_name(REPLACED + final.name))
        self.accelerator.wait_for_everyone()

    def _save_weights(self, folder: Path) -> None:
        model = self.objective.model
        if self.args.should_save:
            model.save_pretrained(folder)
        elif self.is_fsdp_enabled:
            take_part(model)

    def _save_run(self, folder: Path) -> None:
        if self._shards:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
        elif self.args.should_save:
            scaler = getattr(self.accelerator, "scaler", None)
            state.save_optimizer(folder, self.optimizer, self.lr_scheduler, scaler)

    def save_run(self, folder: Path) -> None:
        """Write the trained model, all of it or nothing."""
        with self._written_together(folder) as unfinished:
            self._save_weights(unfinished)

    def _update_callback_states(self) -> None:
        self.budget.write(self.state)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()

    def _remove_old(self) -> None:
        limit = self.args.save_total_limit
        if not limit:
            return
        kept = self.state.best_model_checkpoint
        old = [c for c in checkpoints(self.args.output_dir)[:-limit] if str(c) != kept]
        for checkpoint in old:
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self._collect()
        self.objective.model.load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.objective.model.load_weights(Path(str(self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._shards:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            scaler = getattr(self.accelerator, "scaler", None)
            state.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler, scaler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._shards:
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.load_random_state(Path(checkpoint), self.accelerator.process_index)
