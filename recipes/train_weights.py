"""Train the weights of SmolLM2-135M in units of minutes, a stage after the other.

    python recipes/train_weights.py [--minutes 100] [--stage STAGE] [--overfit]

A unit goes on where the last one ended, to the step, also after a kill. When it ends, its held-out
scores become a line of docs/training-log.md, and what was trained becomes a snapshot in bfloat16.
A clone without the run's folder begins at the snapshot, with a new optimizer. A stage ends when its
hours are used up or its criterion is met; the unit says which.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from clara.backbone.adapters import ADAPTERS, COMPRESSOR, QUERY_REASONER
from clara.config import ClaraConfig
from clara.data.factbook import smollm2_file
from clara.errors import ClaraError
from clara.files.writing import write_text
from clara.model.checkpoint import CONNECTORS, MEMORY_TOKENS
from clara.terminal.printing import quiet_libraries, say
from clara.training.folder import MODEL, checkpoints, describe, read_record
from clara.training.reading import read_settings
from clara.training.run import run
from clara.training.settings import RunSettings, Stage

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smollm2-135m" / "spans.yaml"
LOG = ROOT / "docs" / "training-log.md"
SNAPSHOT = ROOT / "snapshots" / "smollm2-135m"
STAGES: tuple[Stage, ...] = ("instruct", "text", "end-to-end")
_ADAPTER = "adapter_model.safetensors"
_SETTINGS = "adapter_config.json"

_HOURS = "hours.txt"  # beside a restored snapshot: the hours that it had taken

USED_UP = "the stage's hours are used up"
GAP = 0.1
"""What the right memory must stand above another document's, two hours into rate 4."""


class SnapshotError(ClaraError, ValueError):
    """A snapshot is not whole."""


@dataclass
class Criterion(TrainerCallback):
    """Ends a run after an evaluation that says enough; `reason` tells why.

    Attributes:
        rate: whose exact match is looked at.
        reach: exact match from the right memory that is enough; None never is.
        below: exact match from another document's memory that is not passed at the same time.
        gap_after: hours after which the right memory must stand `GAP` above another document's.
    """

    rate: int = 4
    reach: float | None = None
    below: float = 1.0
    gap_after: float | None = None
    reason: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = kwargs["metrics"]
        right = found.get(f"eval_exact_match@{self.rate}")
        other = found.get(f"eval_exact_match_other@{self.rate}")
        if right is None or other is None:
            return
        if self.reach is not None and right >= self.reach and other < self.below:
            self.reason = f"criterion met: exact match {right:.2f}, another's memory {other:.2f}"
        hours = next((r["hours"] for r in reversed(state.log_history) if "hours" in r), 0.0)
        if self.gap_after is not None and hours >= self.gap_after and right < other + GAP:
            self.reason = (
                f"stop rule: after {hours:.1f} hours the right memory ({right:.2f}) is not "
                f"{GAP:.2f} above another's ({other:.2f}): change the recipe"
            )
        if self.reason:
            control.should_training_stop = True


def unit(stage: Stage, minutes: float, overrides: dict[str, Any] | None = None) -> str:
    """Train a stage for so many minutes; why the unit ended."""
    settings = read_settings(RECIPE, stage, {"backbone": str(smollm2_file()), **(overrides or {})})
    folder = Path(settings.arguments["output_dir"])
    before = describe(folder)["hours"] or 0.0 if folder.is_dir() else 0.0
    whole = float(settings.arguments["max_hours"])
    start = folder.with_name("snapshot")
    # The text opponent begins at the bare backbone: the snapshot's generator has learnt memory.
    if stage != "text" and settings.model is None and _begins_at(start, folder):
        if not (checkpoints(folder) and start.is_dir()):
            restore(SNAPSHOT, start)
            write_text(start / _HOURS, f"{logged_hours(stage)}\n")
        settings = at_snapshot(settings, start)
        earlier = float((start / _HOURS).read_text("utf-8"))
    else:
        earlier = 0.0
    if earlier + before >= whole:
        return USED_UP
    settings.arguments["max_hours"] = min(before + minutes / 60, whole - earlier)
    criterion = Criterion(gap_after=2.0 if stage == "instruct" else None)
    run(stage, settings, resume=True, callbacks=[criterion])
    found = describe(folder)
    reason = f"unit of {minutes:g} minutes"
    if found["steps"] >= found["max_steps"]:
        reason = "all steps are done"
    elif settings.arguments["max_hours"] == whole - earlier:
        reason = f"budget of {whole:g} hours"
    reason = criterion.reason or reason
    add_to_log(stage, {**found, "hours": earlier + (found["hours"] or 0.0)}, reason)
    if stage != "text":
        snapshot(folder / MODEL, SNAPSHOT)
    return reason


def _begins_at(start: Path, folder: Path) -> bool:
    """Whether a run begins at the snapshot, or has begun there and goes on."""
    if not checkpoints(folder):
        return SNAPSHOT.is_dir()
    model = (read_record(folder) or {}).get("model") or {}
    return model.get("path") == str(start.resolve())


def at_snapshot(settings: RunSettings, start: Path) -> RunSettings:
    """Settings of a run that begins at a restored snapshot, whose connector is not zero."""
    arguments = dict(settings.arguments)
    if arguments.get("curriculum"):
        phases = [each for each in arguments["curriculum"] if not each.get("averages_only")]
        arguments["curriculum"] = phases
    return replace(settings, model=str(start), arguments=arguments)


def logged_hours(stage: str) -> float:
    """Hours of a stage's last line in docs/training-log.md, those before it included."""
    rows = (line.strip("|").split("|") for line in LOG.read_text("utf-8").splitlines())
    hours = [float(row[4]) for row in rows if len(row) > 4 and row[1].strip() == stage]
    return hours[-1] if hours else 0.0


def add_to_log(stage: str, found: dict[str, Any], reason: str) -> None:
    """A line of the table in docs/training-log.md."""
    scores = found["scores"]

    def shown(name: str) -> str:
        value = scores.get(f"eval_{name}")
        return "" if value is None else f"{value:.3f}"

    cells = [
        datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        stage,
        f"{found['steps']:,}",
        f"{found['positions'] or 0:,}",
        f"{found['hours'] or 0:.2f}",
        *(
            " / ".join(
                shown(name.format(rate)) for name in ("exact_match@{}", "exact_match_other@{}")
            )
            for rate in (4, 16)
        ),
        f"{shown('exact_match_none')} / {shown('exact_match_text')}",
        f"{shown('recall@1@4')} / {shown('recall@5@4')}",
        reason,
    ]
    write_text(LOG, LOG.read_text("utf-8").rstrip("\n") + f"\n| {' | '.join(cells)} |\n")


def snapshot(model: Path, target: Path) -> None:
    """Copy what was trained, in bfloat16; the query reasoner only where it is no copy.

    The backbone is named as in the recipe, not by its place on this machine.
    """
    named = read_settings(RECIPE, "instruct", {}).backbone
    beside = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    same = all(
        torch.equal(value, other)
        for value, other in zip(
            *(_weights(model, name).values() for name in (COMPRESSOR, QUERY_REASONER))
        )
    )
    for name in ADAPTERS:
        if name == QUERY_REASONER and same:
            continue
        (beside / name).mkdir()
        settings = json.loads((model / name / _SETTINGS).read_text("utf-8"))
        settings["base_model_name_or_path"] = named
        write_text(beside / name / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        _save(_weights(model, name), beside / name / _ADAPTER)
    for file in (MEMORY_TOKENS, CONNECTORS):
        rows = load_file(model / file)
        kept = {k: v for k, v in rows.items() if not (same and k.startswith(QUERY_REASONER))}
        _save(kept, beside / file)
    ClaraConfig.load(model / "config.json").replace(backbone=named).save(beside / "config.json")
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def restore(source: Path, folder: Path) -> None:
    """A model folder from a snapshot, the query reasoner a copy of the compressor if it has none.

    Raises:
        SnapshotError: a file of the snapshot is missing.
    """
    needed = [source / "config.json", source / MEMORY_TOKENS, source / CONNECTORS]
    needed += [source / name / _ADAPTER for name in ADAPTERS if name != QUERY_REASONER]
    for file in needed:
        if not file.is_file():
            raise SnapshotError(f"{source}: not a whole snapshot, {file.name} is missing")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    if not (folder / QUERY_REASONER).exists():
        shutil.copytree(folder / COMPRESSOR, folder / QUERY_REASONER)
        rows = load_file(folder / CONNECTORS)
        copies = {k.replace(COMPRESSOR, QUERY_REASONER, 1): v.clone() for k, v in rows.items()}
        save_file({**copies, **rows}, folder / CONNECTORS, metadata={"format": "pt"})


def _weights(model: Path, adapter: str) -> dict[str, torch.Tensor]:
    return dict(sorted(load_file(model / adapter / _ADAPTER).items()))


def _save(weights: dict[str, torch.Tensor], file: Path) -> None:
    rounded = {k: v.to(torch.bfloat16) if v.ndim else v for k, v in weights.items()}
    save_file(rounded, file, metadata={"format": "pt"})


def overfit(minutes: float) -> bool:
    """Learn 64 passages by heart; whether the answers come from their memory alone."""
    folder = ROOT / "runs" / "smollm2-135m-spans" / "overfit"
    data = str(ROOT / "data" / "factbook" / "overfit.jsonl")
    changes = {
        "train_data": data,
        "eval_data": data,
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 64,
        "max_steps": 500,
        "max_hours": minutes / 60,
        "lr_scheduler_type": "linear",
        "eval_steps": 250,
        "save_steps": 250,
        "evaluate_answers": 64,
        "evaluation_rates": [4],
        "curriculum": [
            {"until": 30, "averages_only": True, "rates": [1, 2]},
            {"rates": {2: 1, 4: 3}},
        ],
    }
    settings = read_settings(RECIPE, "instruct", {"backbone": str(smollm2_file()), **changes})
    criterion = Criterion(reach=0.95, below=0.3)
    run("instruct", settings, resume=True, callbacks=[criterion])
    found = describe(folder)
    reason = criterion.reason or "stop rule: not learnt by heart in time: look for a bug"
    add_to_log("overfit", found, reason)
    say(reason)
    return criterion.reason is not None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the weights in units.")
    parser.add_argument("--minutes", type=float, default=100, help="of a unit, at most 100")
    parser.add_argument("--stage", choices=STAGES, help="default: the first that is not at its end")
    parser.add_argument("--overfit", action="store_true", help="learn 64 passages by heart instead")
    given = parser.parse_args(arguments)
    if not 0 < given.minutes <= 100:
        parser.error(f"--minutes must be above 0 and at most 100, got {given.minutes:g}")
    quiet_libraries()
    if given.overfit:
        return 0 if overfit(min(given.minutes, 30)) else 1
    for stage in STAGES if given.stage is None else (given.stage,):
        reason = unit(stage, given.minutes)
        print(json.dumps({"stage": stage, "ended": reason}), flush=True)
        if reason != USED_UP:
            return 1 if reason.startswith("stop rule") else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
