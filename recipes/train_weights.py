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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from clara.backbone.adapters import ADAPTERS, COMPRESSOR, QUERY_REASONER
from clara.config import ClaraConfig
from clara.data.factbook import smollm2_file
from clara.errors import ClaraError
from clara.files.writing import put_back, replace_folder, write_text
from clara.model.checkpoint import CONNECTORS, MEMORY_TOKENS
from clara.model.clara import Clara
from clara.terminal.printing import quiet_libraries, say
from clara.training.folder import MODEL, checkpoints, describe, model_is_current, read_record
from clara.training.reading import read_settings
from clara.training.run import run
from clara.training.settings import RunSettings, Stage

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smollm2-135m" / "spans.yaml"
LOG = ROOT / "docs" / "training-log.md"
SNAPSHOT = ROOT / "snapshots" / "smollm2-135m"
STAGES: tuple[Stage, ...] = ("instruct", "text", "contrastive", "end-to-end")
WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
"""Of an adapter, in its folder."""

_TAKEN = "taken.json"  # in a restored snapshot: what it had taken

USED_UP = "the stage's hours or steps are used up"
GAP = 0.1
"""What the right memory must stand above another document's, two hours into rate 4."""


class SnapshotError(ClaraError, ValueError):
    """A snapshot is not whole, or the model that it should be made of."""


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
    unfinished, aside = places_beside(SNAPSHOT)
    if aside.is_dir():
        put_back(aside, SNAPSHOT, unfinished)
    folder = Path(settings.arguments["output_dir"])
    found = describe(folder) if folder.is_dir() else {}
    hours, steps = found.get("hours") or 0.0, found.get("steps") or 0
    earlier = Taken(0.0, 0)
    start = folder.with_name("snapshot")
    # The text baseline begins at the bare backbone: the snapshot's generator has learnt memory.
    if stage != "text" and settings.model is None and _begins_at(start, folder):
        if not (checkpoints(folder) and start.is_dir()):
            restore(SNAPSHOT, start, settings.config)
            write_text(start / _TAKEN, json.dumps(logged(stage)) + "\n")
        earlier = Taken(*json.loads((start / _TAKEN).read_text("utf-8")))
        settings = at_snapshot(settings, start, earlier.steps)
    whole = float(settings.arguments["max_hours"]) - earlier.hours
    used_up = hours >= whole or steps >= settings.arguments["max_steps"]
    # A unit that was killed in its last evaluation has that and the model still to write.
    if used_up and (not checkpoints(folder) or model_is_current(folder)):
        return USED_UP
    if stage == "contrastive":
        prepare_ranking(settings)
    settings.arguments["max_hours"] = min(hours + minutes / 60, whole)
    criterion = Criterion(gap_after=2.0 - earlier.hours if stage == "instruct" else None)
    run(stage, settings, resume=True, callbacks=[criterion])
    found = describe(folder)
    reason = f"unit of {minutes:g} minutes"
    if found["steps"] >= found["max_steps"]:
        reason = "all steps are done"
    elif settings.arguments["max_hours"] == whole:
        reason = f"budget of {whole + earlier.hours:g} hours"
    reason = criterion.reason or reason
    found |= {
        "hours": earlier.hours + (found["hours"] or 0.0),
        "steps": earlier.steps + found["steps"],
        "positions": earlier.positions + (found["positions"] or 0),
    }
    add_to_log(stage, found, reason)
    if stage != "text":
        snapshot(folder / MODEL, SNAPSHOT)
    return reason


def prepare_ranking(settings: RunSettings) -> None:
    """Make what the contrastive stage begins with; what is there already stays.

    It is the training file with other names, the model of `instruct` with a fitted query reasoner,
    and documents' vectors in place of their memory.

    Args:
        settings: of the stage.

    Raises:
        SnapshotError: the stage before has left no model, or what is there is of an earlier one.
        QueryStartError, RenamingError, DataError: see the scripts.
    """
    # They need an index, for which a machine that trains other stages may lack the packages.
    from mean_memory import write_index
    from query_start import query_start
    from renamed_subjects import write_renamed

    start, renamed = Path(str(settings.model)), Path(settings.train_data)
    trained = Path(read_settings(RECIPE, "instruct", {}).arguments["output_dir"]) / MODEL
    if not start.is_dir() and not trained.is_dir():
        raise SnapshotError(f"{trained}: no model of the stage instruct, which comes first")
    if not renamed.is_file():
        write_renamed(renamed, renamed.with_name(renamed.name.replace(".renamed", "")))
    if not start.is_dir():
        say(json.dumps({"query start": query_start(trained, start, renamed)}))
    index = Path(settings.arguments["candidate_index"])
    files = [str(file) for file in (renamed, settings.eval_data) if file is not None]
    model = Clara.from_pretrained(start, device="cpu")
    if trained.is_dir():
        now = Clara.from_pretrained(trained, device="cpu").fingerprint
        if model.fingerprint != now:
            raise SnapshotError(
                f"{start}: makes other memory than {trained}, which was trained since; remove it, "
                f"{index} and {settings.arguments['output_dir']}"
            )
    added = write_index(model, index, files)
    say(json.dumps({"vectors": added}))


def _begins_at(start: Path, folder: Path) -> bool:
    """Whether a run begins at the snapshot, or has begun there and goes on."""
    if not checkpoints(folder):
        return SNAPSHOT.is_dir()
    model = (read_record(folder) or {}).get("model") or {}
    return model.get("path") == str(start.resolve())


def at_snapshot(settings: RunSettings, start: Path, steps: int = 0) -> RunSettings:
    """Settings of a run that begins at a restored snapshot, whose connector is not zero.

    Args:
        steps: of the recipe that were taken before the snapshot; the curriculum goes on there.
    """
    arguments = dict(settings.arguments)
    arguments["max_steps"] -= steps
    phases, begin = [], 0
    for phase in arguments.get("curriculum") or ():
        end = phase.get("until")
        if not phase.get("averages_only") and (end is None or end > steps):
            rest = dict(phase)
            if end is not None:
                rest["until"] = end - steps
            for name in ("reconstruction", "numbers"):
                share = phase.get(name)
                if isinstance(share, list) and begin < steps:
                    passed = (steps - begin) / ((end or settings.arguments["max_steps"]) - begin)
                    rest[name] = [share[0] + (share[1] - share[0]) * passed, share[1]]
            phases.append(rest)
        begin = end or begin
    if phases:
        arguments["curriculum"] = phases
    return replace(settings, model=str(start), arguments=arguments)


class Taken(NamedTuple):
    """What a stage took before."""

    hours: float
    steps: int
    positions: int = 0


def log_lines(stage: str) -> list[Taken]:
    """What a stage had taken at each line of docs/training-log.md, in order.

    Some steps have several lines: what was trained after the first one was taken back.
    """
    found = []
    for line in LOG.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 4 and cells[1] == stage:
            try:
                steps, positions = (int(cells[i].replace(",", "")) for i in (2, 3))
                found.append(Taken(float(cells[4]), steps, positions))
            except ValueError:  # a line that was edited by hand
                continue
    return found


def logged(stage: str) -> Taken:
    """What a stage has taken by the last line of docs/training-log.md; nothing without a line."""
    return next(reversed(log_lines(stage)), Taken(0.0, 0))


def add_to_log(stage: str, found: dict[str, Any], reason: str) -> None:
    """A line of the table in docs/training-log.md."""
    scores = found["scores"]

    def both(*names: str) -> str:
        """Two scores; nothing where the stage has neither."""
        values = [scores.get(f"eval_{name}") for name in names]
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        return " / ".join(shown) if any(shown) else ""

    cells = [
        datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        stage,
        f"{found['steps']:,}",
        f"{found['positions'] or 0:,}",
        f"{found['hours'] or 0:.2f}",
        *(both(f"exact_match@{rate}", f"exact_match_other@{rate}") for rate in (4, 16)),
        both("exact_match_none", "exact_match_text"),
        both("recall@1@4", "recall@5@4"),
        reason,
    ]
    write_text(LOG, LOG.read_text("utf-8").rstrip("\n") + f"\n| {' | '.join(cells)} |\n")


def snapshot(model: Path, target: Path) -> None:
    """Copy what was trained, in bfloat16; the query reasoner only once it is trained.

    The backbone is named as in the recipe, not by its place on this machine.
    """
    named = read_settings(RECIPE, "instruct", {}).backbone
    beside, aside = places_beside(target)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    reasoner = trained_reasoner(model)
    copy_adapters(model, beside, named, [n for n in ADAPTERS if reasoner or n != QUERY_REASONER])
    ClaraConfig.load(model / "config.json").replace(backbone=named).save(beside / "config.json")
    replace_folder(beside, target, aside)


def copy_adapters(
    model: Path, target: Path, backbone: str | None, adapters: Sequence[str] = ADAPTERS
) -> None:
    """Copy adapters in bfloat16, and what makes and reads memory with them.

    Memory tokens and connectors go along with the compressor alone: without it there is no memory.

    Args:
        model: folder of the model.
        target: folder that is there.
        backbone: name that the copies give to their backbone.

    Raises:
        SnapshotError: the settings of an adapter are missing or damaged.
    """
    for name in adapters:
        settings = _adapter_settings(model / name / SETTINGS)
        settings["base_model_name_or_path"] = backbone
        (target / name).mkdir()
        write_text(target / name / SETTINGS, json.dumps(settings, indent=2) + "\n")
        save_rounded(_weights(model, name), target / name / WEIGHTS)
    if COMPRESSOR not in adapters:
        return
    left_out = set(ADAPTERS) - set(adapters)
    for file in (MEMORY_TOKENS, CONNECTORS):
        if (model / file).is_file():  # only some forms of memory have connectors
            rows = load_file(model / file)
            kept = {k: v for k, v in rows.items() if k.partition(".")[0] not in left_out}
            save_rounded(kept, target / file)


def _adapter_settings(file: Path) -> dict[str, object]:
    try:
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{file}: cannot read the adapter's settings: {error}") from error
    if not isinstance(settings, dict):
        raise SnapshotError(f"{file}: is not a JSON object")
    return settings


def places_beside(target: Path) -> tuple[Path, Path]:
    """Where a new snapshot is made, and where the old one is while it is replaced."""
    return target.with_name(f".{target.name}.unfinished"), target.with_name(f".{target.name}.old")


def restore(source: Path, folder: Path, recipe: Mapping[str, Any] | None = None) -> None:
    """A model folder from a snapshot, the query reasoner untrained if the snapshot has none.

    Its B is zero then, so the stage that trains it copies the compressor of that time.

    Args:
        recipe: settings of the model that will be trained. Its `span_slope` is taken over: no
            weight depends on it, and a recipe may change it between snapshots.

    Raises:
        SnapshotError: a file of the snapshot is missing or damaged. `folder` stays as it was.
        SavedModelError: its settings are damaged. `folder` stays as it was.
    """
    needed = [source / "config.json", source / MEMORY_TOKENS, source / CONNECTORS]
    needed += [source / name / WEIGHTS for name in ADAPTERS if name != QUERY_REASONER]
    for file in needed:
        if not file.is_file():
            raise SnapshotError(f"{source}: not a whole snapshot, {file.name} is missing")
    config = ClaraConfig.load(source / "config.json")
    for file in source.rglob("*.safetensors"):
        try:
            load_file(file)
        except (OSError, SafetensorError) as error:
            raise SnapshotError(f"{file}: damaged, not a whole snapshot: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    if recipe is not None:
        slope = recipe.get("span_slope", ClaraConfig.span_slope)
        config.replace(span_slope=slope).save(folder / "config.json")
    if not (folder / QUERY_REASONER).exists():
        shutil.copytree(folder / COMPRESSOR, folder / QUERY_REASONER)
        weights = _weights(folder, COMPRESSOR)
        untrained = {k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in weights.items()}
        save_rounded(untrained, folder / QUERY_REASONER / WEIGHTS)
        rows = load_file(folder / CONNECTORS)
        copies = {k.replace(COMPRESSOR, QUERY_REASONER, 1): v.clone() for k, v in rows.items()}
        save_file({**copies, **rows}, folder / CONNECTORS, metadata={"format": "pt"})


def trained_reasoner(model: Path) -> bool:
    """Whether a model's query reasoner is more than the compressor's copy, and changes anything."""
    own, other = (_weights(model, name) for name in (QUERY_REASONER, COMPRESSOR))
    changes = any(value.any() for name, value in own.items() if ".lora_B." in name)
    return changes and not all(torch.equal(own[name], other[name]) for name in own)


def _weights(model: Path, adapter: str) -> dict[str, torch.Tensor]:
    return dict(sorted(load_file(model / adapter / WEIGHTS).items()))


def save_rounded(weights: dict[str, torch.Tensor], file: Path) -> None:
    """Save weights in bfloat16; single numbers stay as they are."""
    rounded = {k: v.to(torch.bfloat16) if v.ndim else v for k, v in weights.items()}
    save_file(rounded, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors leaves it to the user alone


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
        "eval_steps": 125,
        "save_steps": 125,
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
    try:
        return _trained(given)
    except ClaraError as error:
        say(f"error: {error}")
        return 1


def _trained(given: argparse.Namespace) -> int:
    """What the process returns: 1 after a stop rule."""
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
