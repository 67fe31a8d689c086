"""Record what a run is made of, and compare it when the run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara import __version__
from clara.config import ClaraConfig
from clara.data.examples import Examples
from clara.errors import shortened
from clara.training.arguments import ClaraTrainingArguments
from clara.training.folder import RECORD, read_record, steps_of
from clara.training.length import Length
from clara.training.settings import RunSettings, SettingsError
from clara.training.treatments import BATCH, treatment

if TYPE_CHECKING:
    from clara.training.teacher import TeacherFolder

# How attention is computed, and the backbone, which is compared apart; every other setting of the
# model is fixed.
_FREE_OF_MODEL = frozenset(("attention", "backbone", "backbone_digest"))

# Learning rates that do not depend on how many steps a run has.
_WITHOUT_END = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")


def run_record(
    stage: str,
    settings: RunSettings,
    arguments: ClaraTrainingArguments,
    length: Length,
    train: Examples[Any],
    evaluation: Examples[Any] | None,
    teacher: TeacherFolder | None = None,
) -> dict[str, Any]:
    """What a run is made of, as JSON; it goes into the run's folder and every checkpoint."""
    import torch
    import transformers

    values = {name: value for name, value in arguments.to_dict().items() if name != "hub_token"}
    return {
        "stage": stage,
        "model": _place(settings.model),
        "backbone": _place(settings.backbone),
        "train_data": _data(settings.train_data, settings.train_split, train),
        "eval_data": _data(settings.eval_data, settings.eval_split, evaluation),
        "teacher": None if teacher is None else {"given": teacher.given, "digest": teacher.digest},
        "processes": max(arguments.world_size, 1),
        "max_steps": length.total,
        "steps_of_an_epoch": length.epoch,
        "arguments": json.loads(json.dumps(values, default=str)),
        "versions": {
            "clara": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }


def check_resumed(checkpoint: Path, record: Mapping[str, Any], config: ClaraConfig) -> list[str]:
    """Compare a run with the checkpoint that it is resumed from.

    Args:
        record: of the resumed run, see `run_record`.
        config: of the model as it would be loaded.

    Returns:
        What is to be said: the step, and what changed.

    Raises:
        SettingsError: the run contradicts the checkpoint; names every setting with both values.
    """
    before = read_record(checkpoint)
    contradictions = _other_model(checkpoint, config)
    changes: list[str] = []
    done = steps_of(checkpoint)
    lines = [f"resuming at step {done} of {record['max_steps']}"]
    if before is None:
        contradictions += _other_batch_of_old(checkpoint, record)
        lines.append(
            f"{checkpoint.name} does not record the settings of its run: only the model's "
            "settings and the batch size were compared with it"
        )
    else:
        optional = {"backbone_digest", "teacher", "versions"}
        missing = sorted(record.keys() - before.keys() - optional)
        if missing:
            raise SettingsError(f"{checkpoint / RECORD}: lacks {missing[0]!r}")
        contradictions += _other_start(before, record)
        for name in ("train_data", "eval_data"):
            _compare_data(name, before.get(name), record[name], contradictions, changes)
        _compare_teachers(before.get("teacher"), record.get("teacher"), contradictions, changes)
        _compare_batches(before, record, contradictions, changes)
        _compare_arguments(before["arguments"], record["arguments"], contradictions, changes)
        changes += _moved_backbone(before, record)
    if record["max_steps"] < done:
        contradictions.append(f"the run has done {done} steps, max_steps is {record['max_steps']}")
    if contradictions:
        raise SettingsError(
            f"{checkpoint.parent}: cannot be resumed with other settings: "
            f"{'; '.join(contradictions)}. To train on with others, start a new run with "
            f"model: {checkpoint} and an output_dir of its own"
        )
    if record["max_steps"] == done:
        lines.append("all steps are done already, nothing is left to train")
    if changes:
        lines[0] += f"; changed: {', '.join(changes)}"
        if before is not None and before.get("max_steps") != record["max_steps"]:
            lines += _other_curve(before, record)
    return lines


def check_backbone(before: Mapping[str, Any] | None, record: Mapping[str, Any]) -> None:
    """Refuse to resume on another backbone, where its place changed.

    Raises:
        SettingsError: both its place and its digest differ from those of the run.
    """
    if before is None or not _moved_backbone(before, record):
        return
    old, new = before.get("backbone_digest"), record.get("backbone_digest")
    if old and new and old != new:
        raise SettingsError(
            f"cannot resume with another backbone: backbone is {record['backbone']['given']} "
            f"(digest {new[:12]}), the run has {before['backbone']['given']} (digest {old[:12]})"
        )


def _place(name: str | None) -> dict[str, str] | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    return {"given": name, "path": str(path.resolve()) if path.exists() else name}


def _same_place(one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one["given"] == other["given"] or one["path"] == other["path"]


def _data(source: str | None, split: str, examples: Examples[Any] | None) -> dict[str, Any] | None:
    if source is None or examples is None:
        return None
    return {
        "source": source,
        "split": split,
        "examples": len(examples),
        "digest": examples.digest,
    }


def _other_start(before: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    found = []
    if before["stage"] != record["stage"]:
        found.append(_differs("stage", before["stage"], record["stage"]))
    if not _same_place(before["model"], record["model"]):
        old, new = ((each["model"] or {}).get("given") for each in (before, record))
        found.append(_differs("model", old, new))
    return found


def _moved_backbone(before: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    if _same_place(before["backbone"], record["backbone"]):
        return []
    old, new = ((each["backbone"] or {}).get("given") for each in (before, record))
    return [_changed("backbone", old, new)]


def _other_model(checkpoint: Path, config: ClaraConfig) -> list[str]:
    before, now = ClaraConfig.load(checkpoint / "config.json").to_dict(), config.to_dict()
    return [
        _differs(name, before[name], value)
        for name, value in now.items()
        if name not in _FREE_OF_MODEL and before[name] != value
    ]


def _other_batch_of_old(checkpoint: Path, record: Mapping[str, Any]) -> list[str]:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{checkpoint}: cannot read trainer_state.json: {error}") from error
    old, new = state.get("train_batch_size"), record["arguments"]["per_device_train_batch_size"]
    return [] if old in (None, new) else [_differs("per_device_train_batch_size", old, new)]


def _compare_data(
    name: str,
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any] | None,
    contradictions: list[str],
    changes: list[str],
) -> None:
    if before is None or now is None:  # evaluation data, which a run need not have
        if before != now:
            old, new = ((each or {}).get("source") for each in (before, now))
            changes.append(_changed(name, old, new))
        return
    if before["digest"] and now["digest"]:
        same = before["digest"] == now["digest"]
    else:
        same = all(before[key] == now[key] for key in ("source", "split", "examples"))
    if not same:
        contradictions.append(_differs(name, _shown_data(before), _shown_data(now)))
    elif before["source"] != now["source"]:
        changes.append(_changed(name, before["source"], now["source"]))


def _compare_teachers(
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any] | None,
    contradictions: list[str],
    changes: list[str],
) -> None:
    old, new = (each or {"given": None, "digest": None} for each in (before, now))
    if old["digest"] != new["digest"]:
        contradictions.append(_differs("teacher", _shown_teacher(old), _shown_teacher(new)))
    elif old["given"] != new["given"]:
        changes.append(_changed("teacher", old["given"], new["given"]))


def _shown_teacher(teacher: Mapping[str, Any]) -> str | None:
    given, digest = teacher["given"], teacher["digest"]
    return None if given is None else f"{given} (digest {digest[:8]})"


def _shown_data(data: Mapping[str, Any]) -> str:
    digest = f", digest {data['digest'][:8]}" if data["digest"] else ""
    return f"{data['source']} ({data['examples']} examples{digest})"


def _compare_batches(
    before: Mapping[str, Any],
    record: Mapping[str, Any],
    contradictions: list[str],
    changes: list[str],
) -> None:
    """Batches may be divided otherwise, as long as every step takes the same examples."""
    old, new = (
        {
            **{n: r["arguments"][n] for n in sorted(BATCH) if n != "total_batch_size"},
            "processes": r["processes"],
        }
        for r in (before, record)
    )
    names = [name for name in new if old[name] != new[name]]
    same = (
        _product(old) == _product(new)
        and before["steps_of_an_epoch"] == record["steps_of_an_epoch"]
        # Each process goes on with random numbers of its own.
        and new["processes"] <= old["processes"]
    )
    if same:
        changes += [_changed(name, old[name], new[name]) for name in names]
    else:
        contradictions += [_differs(name, old[name], new[name]) for name in names]


def _product(batch: Mapping[str, int]) -> int:
    product = 1
    for value in batch.values():
        product *= value
    return product


def _compare_arguments(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    contradictions: list[str],
    changes: list[str],
) -> None:
    for name, value in now.items():
        if name not in before or before[name] == value:
            continue  # a setting that another version does not have is not compared
        how = treatment(name)
        if how == "free" or (how == "once" and None in (before[name], value)):
            changes.append(_changed(name, before[name], value))
        elif how in ("fixed", "once"):
            contradictions.append(_differs(name, before[name], value))


def _other_curve(before: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What depends on how many steps a run has in all."""
    arguments = record["arguments"]
    schedule, warmup = arguments["lr_scheduler_type"], arguments["warmup_steps"]
    parts = []
    if schedule not in _WITHOUT_END or 0 < warmup < 1:
        parts.append(f"the learning rate (lr_scheduler_type {schedule})")
    if arguments.get("selection"):
        parts.append("the selection's phases")
    last = (arguments.get("curriculum") or [{}])[-1]
    for name in ("reconstruction", "numbers"):
        share = last.get(name)
        if isinstance(share, list) and share[0] != share[-1]:
            parts.append(f"the share of {name} in the curriculum's last phase")
    if not parts:
        return []
    return [
        f"{' and '.join(parts)} from here on: as in a run of {record['max_steps']} steps, "
        f"which differs from one of {before.get('max_steps')}"
    ]


def _differs(name: str, before: Any, now: Any) -> str:
    return f"{name} is {_shown(now)}, the run has {_shown(before)}"


def _changed(name: str, before: Any, now: Any) -> str:
    return f"{name} {_shown(before)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shortened(text, 100)
