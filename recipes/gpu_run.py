"""The training of `gpu_train.py`: a run that ends by the clock, and its best adapters so far.

The output folder holds a snapshot of the best adapters, as `train_weights.py` makes them, and
`result.json` with what a line of the training log needs and the files' SHA-256 sums.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_parts import MIB, PACKED, WEIGHTS, PartsError, unpack_weights
from train_weights import at_snapshot, restore, snapshot
from transformers import TrainerCallback

from clara.backbone.digest import backbone_digest
from clara.errors import ClaraError
from clara.files.digest import sha256_of
from clara.files.writing import write_text
from clara.model.clara import Clara
from clara.terminal.printing import say
from clara.training.reading import read_settings
from clara.training.run import run

RESULT = "result.json"
SNAPSHOT = "snapshot"
MOST_FILES = 8
MOST_BYTES = 16 * MIB
DEEPEST = 2
"""Folders between the output folder and a file."""
EVERY = 60.0
"""Seconds between two evaluations."""
AGAIN = 1.0
"""Seconds from one alarm to the next: the first may come where nobody hears it."""


class OutputError(ClaraError, ValueError):
    """The output folder would hold what cannot come back."""


class OutOfTime(BaseException):
    """The end has come in the middle of something. No library catches it as an error."""


# Output


class Output:
    """The folder that comes back.

    Args:
        record: goes into every `result.json`.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record = dict(record)

    def write(self, model: Clara, found: Mapping[str, Any]) -> None:
        """Replace what is there by the model's adapters, rows and connectors in bfloat16.

        Files are written elsewhere and renamed, `result.json` last: its sums tell whether all
        files are of the same minute.

        Args:
            found: of these adapters; goes into `result.json`.

        Raises:
            OutputError: there would be too many files, or one is too large. Nothing is replaced.
        """
        # Renaming needs the same file system.
        beside = self.folder if self.folder.is_mount() else self.folder.parent
        with TemporaryDirectory(dir=beside, prefix=".gpu-train-") as scratch:
            whole, staged = Path(scratch) / "model", Path(scratch) / "staged"
            model.save_pretrained(whole)
            snapshot(whole, staged / SNAPSHOT)
            names = _files(staged)
            sums = {name: sha256_of(staged / name) for name in names}
            record = {**self._record, **found, "files": sums}
            write_text(staged / RESULT, json.dumps(record, indent=1) + "\n")
            self._check(staged, beside=Path(scratch))
            with _undisturbed():
                for name in [*names, RESULT]:
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(staged / name, self.folder / name)
                self._record = record  # `end` writes the sums of the files that are there

    def end(self, reason: str) -> None:
        """Say in `result.json` why the run ended."""
        self._record["ended"] = reason
        write_text(self.folder / RESULT, json.dumps(self._record, indent=1) + "\n")

    def _check(self, staged: Path, beside: Path) -> None:
        others = [n for n in _files(self.folder) if beside.name not in Path(n).parts]
        names = sorted({*others, *_files(staged)})
        if len(names) > MOST_FILES:
            raise OutputError(
                f"{self.folder} would hold {len(names)} files, of which {MOST_FILES} come back: "
                f"{', '.join(names)}"
            )
        for name in names:
            place = staged / name if (staged / name).is_file() else self.folder / name
            size = place.stat().st_size
            if size > MOST_BYTES:
                raise OutputError(
                    f"{self.folder / name} would have {size / MIB:.1f} MiB; files of at most "
                    f"{MOST_BYTES / MIB:.0f} MiB come back"
                )
            parts = Path(name).parts
            if len(parts) > DEEPEST + 1 or not re.fullmatch(r"[\w./-]+", name, re.ASCII):
                raise OutputError(
                    f"{self.folder / name} would not come back: names have letters, digits, "
                    f"'.', '_' and '-', in at most {DEEPEST} folders"
                )


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# The clock


@dataclass
class _Alarm:
    """The alarm of the process: whether it has to wait, and whether one waits."""

    held: bool = False
    waiting: bool = False


_alarm = _Alarm()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """`OutOfTime` of `ended_by` waits until the block is left.

    Masking the signal would not do: another thread takes it then, and Python runs the handler in
    the main thread all the same.
    """
    _alarm.held, _alarm.waiting = True, False
    try:
        yield
    finally:
        _alarm.held = False
    if _alarm.waiting:
        raise OutOfTime


@contextmanager
def ended_by(deadline: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block at a time of `time.monotonic`, whatever it is doing.

    It comes again every second until the block is left: Python drops what is raised in `__del__`.
    """

    def end(*_: Any) -> None:
        if _alarm.held:
            _alarm.waiting = True
        else:
            raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 1e-3), AGAIN)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # an alarm may have come just before it was turned off
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class BestByTheClock(TrainerCallback):
    """Evaluates every minute, writes the best adapters, and ends the run in time.

    The best are those with most exact matches from the right memory, then those with the lowest
    loss.

    Attributes:
        output: where they go.
        deadline: of `clock`; the last evaluation is over by then if it takes as long as the one
            before.
        every: seconds from one evaluation to the next.
        ended: why the run ended; None while it goes on.
    """

    output: Output
    deadline: float
    every: float = EVERY
    clock: Callable[[], float] = time.monotonic
    ended: str | None = None
    _best: tuple[float, float] | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)
    _asked: float = field(default=0.0, init=False)
    _took: float = field(default=0.0, init=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what the run starts from: what cannot come back is known before the first step."""
        self._began = self._asked = self.clock()
        self.output.write(kwargs["model"].model, _figures(state, {}))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self.clock()
        if state.global_step >= state.max_steps:
            self.ended = "all steps are done"
        elif now + 1.5 * self._took + 10 >= self.deadline:
            self.ended = f"{(self.deadline - self._began) / 60:.1f} minutes"
        if self.ended is not None:
            control.should_training_stop = control.should_log = True
        if self.ended is not None or now - self._asked >= self.every:
            control.should_evaluate = True
            self._asked = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        self._took = self.clock() - self._asked
        score = (metrics["eval_exact_match"], -metrics["eval_loss"])
        better = self._best is None or score > self._best
        if better:
            self._best = score
            self.output.write(kwargs["model"].model, _figures(state, metrics))
        say(
            f"step {state.global_step}: exact match {score[0]:.3f}, loss {-score[1]:.3f}, "
            f"evaluated in {self._took:.0f} s{', the best so far' if better else ''}"
        )


def _figures(state: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What a line of the training log has of a moment."""
    logged = state.log_history[-1] if state.log_history else {}
    return {
        "steps": state.global_step,
        "positions": logged.get("positions", 0),
        "hours": logged.get("hours", 0.0),
        "scores": {name: value for name, value in metrics.items() if name.startswith("eval_")},
    }


# The run


def train(
    joined: Path,
    manifest: Mapping[str, Any],
    output: Path,
    recipe: Path,
    start: Path,
    deadline: float,
) -> str:
    """Train the instruct stage until a time of `time.monotonic`; why it ended.

    Args:
        joined: folder of what was in the parts.
        output: folder for the best adapters.
        recipe: settings of a run; data, backbone and output are those of the parts.
        start: snapshot to start from, if it is there.

    Raises:
        ValueError: settings, parts or output are not usable; a kind of it for each.
    """
    settings = read_settings(
        recipe,
        "instruct",
        {
            "backbone": str(joined / "backbone"),
            "train_data": str(joined / manifest["train_data"]),
            "eval_data": str(joined / manifest["eval_data"]),
            "output_dir": str(joined / "run"),
        },
    )
    on_cpu = bool(settings.arguments.get("use_cpu"))
    if not on_cpu and not torch.cuda.is_available():
        raise PartsError(f"there is no GPU that torch {torch.__version__} sees")
    packed = joined / "backbone" / PACKED
    if packed.is_file():
        unpack_weights(packed, joined / "backbone" / WEIGHTS)
        packed.unlink()
    if backbone_digest(str(joined / "backbone")) != manifest["backbone_digest"]:
        raise PartsError(f"{joined / 'backbone'}: the weights are not those that were packed")
    if start.is_dir():
        restore(start, joined / "start", settings.config)
        settings = at_snapshot(settings, joined / "start")
    device = "a CPU" if on_cpu else torch.cuda.get_device_name(0)
    record = {"stage": "instruct", "device": device, "steps": 0, "ended": None}
    folder = Output(output, {**record, "start": manifest["snapshot"]})
    clock = BestByTheClock(folder, deadline - 5)
    try:
        with ended_by(deadline):
            run("instruct", settings, callbacks=[clock])
    except OutOfTime:
        clock.ended = "the end of its time in the middle of a step or an evaluation"
    reason = f"{clock.ended or 'stopped'} on {device}"
    folder.end(reason)
    return reason
