"""The folder of a run. This module does not import torch: `clara info` and `plot` stay quick."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.errors import ClaraError
from clara.files.writing import put_back, write_text
from clara.training.settings import SettingsError

LOG = "log.jsonl"
MODEL = "model"
"""Folder of the trained model in a run's folder."""
RECORD = "run.json"
"""Settings and data of a run, in its folder and in each of its checkpoints."""
UNFINISHED = ".unfinished-"
"""What the name of a checkpoint or model begins with while it is written."""
REPLACED = ".replaced-"
"""What the name of a checkpoint or model begins with while a new one takes its place."""


class RunError(ClaraError, ValueError):
    """What a training run has written is missing or damaged, or cannot be drawn."""


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = {
        int(match[1]): Path(folder) / match[0]
        for name in (os.listdir(folder) if os.path.isdir(folder) else [])
        if (match := re.fullmatch(r"checkpoint-(\d+)", name))
    }
    return [found[step] for step in sorted(found)]


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse to write a run over another one.

    Raises:
        SettingsError: there is a run already and `resume` is not wanted, or it is finished and
            holds no checkpoint to go on from.
    """
    found, finished = checkpoints(folder), (folder / MODEL).exists()
    if (found or finished) and not resume:
        raise SettingsError(f"{folder}: holds a run already; resume it, or choose another folder")
    if finished and not found:
        raise SettingsError(f"{folder}: is finished, and holds no checkpoint to go on from")


def restore_replaced(folder: str | os.PathLike[str]) -> None:
    """Put back what a killed run had moved aside, if the new one did not take its place."""
    for path in sorted(Path(folder).glob(f"{REPLACED}*")):
        name = path.name.removeprefix(REPLACED)
        put_back(path, path.with_name(name), path.with_name(UNFINISHED + name))


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed run left behind of a checkpoint it was writing."""
    for path in Path(folder).glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def steps_of(checkpoint: Path) -> int:
    """Steps that were done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (folder / LOG).is_file() or (folder / RECORD).is_file() or bool(checkpoints(folder))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`; the file holds all of the record or what it held before."""
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """`run.json` of a run or a checkpoint; None if there is none, as in runs of version 0.1.

    Raises:
        RunError: the file cannot be read; names it.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot read the run's settings: {error}") from error
    if not isinstance(record, dict):
        raise RunError(f"{file}: is not a JSON object")
    return record


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that a kill cut off is left out.

    Raises:
        RunError: a line before the last is not a record.
    """
    records: list[dict[str, Any]] = []
    written = path.read_bytes().splitlines()  # a line that is not UTF-8 is no record, either
    for number, line in enumerate(written, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no step")
        except (ValueError, RecursionError) as error:
            if number == len(written):
                break
            raise RunError(f"{path}:{number}: is not a record of a run") from error
        records.append(record)
    return records


def describe(folder: Path) -> dict[str, Any]:
    """What is known of a run from its files, for `clara info`.

    Returns:
        "stage", "steps" done, "max_steps", "positions" that went through the backbone, "hours"
        taken and "hours_left" (until the last step or the end of `max_hours`), "loss" (the last
        logged), "scores" (of the last evaluation), "model" and "last_checkpoint" (paths, or None),
        "finished". Values that the files do not tell are None.

    Raises:
        RunError: a file of the run is damaged; names it.
    """
    record = read_record(folder) or {}
    logged = read_log(folder / LOG) if (folder / LOG).is_file() else []
    saved = checkpoints(folder)
    steps = max([0, *(each["step"] for each in logged), *map(steps_of, saved)])
    model = (folder / MODEL).is_dir()
    hours = _last(logged, "hours")
    finished = (
        model_is_current(folder)
        and not _stopped_by_hours(record, steps, hours)
        and not _goes_on(folder, record, steps)
    )
    evaluated = [each for each in logged if any(name.startswith("eval_") for name in each)]
    scores = {
        name: value
        for name, value in (evaluated[-1] if evaluated else {}).items()
        if name in _SCORES or name.startswith(_CONTROLS + _RATES)
    }
    return {
        "stage": record.get("stage"),
        "finished": finished,
        "steps": steps,
        "max_steps": record.get("max_steps"),
        "positions": _last(logged, "positions"),
        "hours": hours,
        "hours_left": None if finished else _hours_left(record, steps, hours),
        "loss": _last(logged, "loss"),
        "scores": scores,
        "train_data": (record.get("train_data") or {}).get("source"),
        "model": str(folder / MODEL) if model else None,
        "last_checkpoint": str(saved[-1]) if saved else None,
    }


def model_is_current(folder: Path) -> bool:
    """Whether a run's model was written after its last checkpoint; else the run was killed."""
    model = folder / MODEL
    if not model.is_dir():
        return False
    written = model.stat().st_mtime_ns
    return all(checkpoint.stat().st_mtime_ns <= written for checkpoint in checkpoints(folder))


def _stopped_by_hours(record: Mapping[str, Any], steps: int, hours: float | None) -> bool:
    """Whether a run goes on with more hours: `max_hours` were over before its last step."""
    budget, total = (record.get("arguments") or {}).get("max_hours"), record.get("max_steps")
    if budget is None or total is None or hours is None:
        return False
    return bool(hours >= budget - 1e-4 and steps < total)  # the log rounds hours


def _goes_on(folder: Path, record: Mapping[str, Any], steps: int) -> bool:
    """Whether a run with steps left has logged something since its model was written."""
    log, total = folder / LOG, record.get("max_steps")
    if total is None or steps >= total or not log.is_file():
        return False
    return log.stat().st_mtime_ns > (folder / MODEL).stat().st_mtime_ns


def _last(logged: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The figure of the last record that has it; None without one."""
    return next((each[name] for each in reversed(logged) if name in each), None)


def _hours_left(record: Mapping[str, Any], steps: int, hours: float | None) -> float | None:
    """Hours until the last step at the pace so far, or until the budget is over."""
    total, budget = record.get("max_steps"), (record.get("arguments") or {}).get("max_hours")
    if hours is None:
        return None
    left = [] if budget is None else [max(budget - hours, 0.0)]
    if total is not None and steps:
        left.append(hours / steps * max(total - steps, 0))
    return round(min(left), 4) if left else None


_SCORES = (
    *("eval_loss", "eval_ce", "eval_mse", "eval_kl", "eval_span", "eval_contrastive"),
    *("eval_recall@1", "eval_recall@5"),
)
_CONTROLS = ("eval_exact_match", "eval_loss_", "eval_recall@", "eval_added@")
"""What the names of scores of `clara.training.controls` begin with."""
_RATES = ("eval_loss@", "eval_recall_candidates@1@", "eval_recall_candidates@5@")
"""What the names of scores at each of `candidate_rates` begin with."""
