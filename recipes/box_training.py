"""What is known of the training of a model, from its run and from docs/training-log.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_card import FACTBOOK_DATA, Trained
from train_weights import LOG, RECIPE, Taken, log_lines

from clara.backbone.adapters import GENERATOR
from clara.config import ClaraConfig
from clara.errors import ClaraError
from clara.files.digest import sha256_of
from clara.model.shipped import CONFIG
from clara.training import curriculum
from clara.training.folder import (
    MODEL,
    RECORD,
    checkpoints,
    describe,
    read_record,
    steps_of,
)
from clara.training.reading import read_settings

STAGES = ("instruct", "contrastive", "end-to-end")


class BoxError(ClaraError, ValueError):
    """A model that cannot come with the project as it is."""


class OwnRun(NamedTuple):
    """The run that wrote a model.

    Attributes:
        steps, positions: of the run alone, when it ended.
        best: step that the model is of, if that is an earlier one.
    """

    stage: str
    record: Mapping[str, Any]
    steps: int
    positions: int
    best: int | None


def own_run(folder: Path) -> OwnRun | None:
    """The run of a model folder; None for one that does not lie in a run's folder.

    Raises:
        BoxError: nothing tells the step that the model is of.
        RunError: its record is damaged.
    """
    run = folder.parent
    if folder.name != MODEL or not (run / RECORD).is_file():
        return None
    record, found = read_record(run) or {}, describe(run)
    if not found["steps"]:
        raise BoxError(f"{run}: holds no log of its steps")
    best = _step_of(folder)
    steps = found["steps"]
    stage, positions = str(record.get("stage")), found["positions"] or 0
    return OwnRun(stage, record, steps, positions, None if best == steps else best)


def _step_of(folder: Path) -> int:
    """The step that a run's model is of: that of the checkpoint with the same weights.

    The time of the files tells nothing once a run was copied.

    Raises:
        BoxError: there is no such checkpoint, so nothing tells the step.
    """
    weights = Path(GENERATOR) / "adapter_model.safetensors"
    digest = sha256_of(folder / weights)
    for checkpoint in reversed(checkpoints(folder.parent)):
        file = checkpoint / weights
        if file.is_file() and sha256_of(file) == digest:
            return steps_of(checkpoint)
    raise BoxError(
        f"{folder.parent}: no checkpoint has the weights of its model, so nothing tells their "
        f"step; give {folder.name} alone, away from the run, with --steps"
    )


def trained_stages(folder: Path, steps: Mapping[str, int]) -> list[Trained]:
    """The stages that a model went through, with the compression rates of each.

    The stage of the model's own run is told by the run. Nothing tells another stage, nor that of a
    model folder without a run, so these are stated only where `steps` names the line of the log.

    Args:
        folder: of the model.
        steps: in all, of a stage.

    Raises:
        BoxError: the log has no line of those steps, or none that the run can have ended at,
            nothing is known of a stage that there must have been, or `steps` names a later one.
        ClaraError: the model's settings are missing or damaged.
    """
    run = own_run(folder)
    if run is None and not steps:
        raise BoxError(
            f"{folder}: does not lie in the folder of a run: --steps STAGE=STEPS says which line "
            f"of {LOG.name} it is of"
        )
    if run is not None and run.stage not in STAGES:
        raise BoxError(f"{folder.parent}: a run of {' or '.join(STAGES)} is needed: {run.stage}")
    if run is not None and run.stage != "instruct" and "instruct" not in steps:
        raise BoxError(
            f"{folder}: --steps instruct=STEPS is needed, for the stage before its run of "
            f"{run.stage}"
        )
    if run is not None:
        for stage in STAGES[STAGES.index(run.stage) + 1 :]:
            if stage in steps:
                raise BoxError(
                    f"--steps {stage}={steps[stage]}: {folder.parent} is a run of {run.stage}, "
                    "which comes before"
                )
    every = curriculum.trained_rates(ClaraConfig.load(folder / CONFIG))
    found = []
    for stage in STAGES:
        if run is not None and stage == run.stage:
            found.append(stage_of_run(run, steps.get(stage), every))
        elif stage in steps:
            taken = line_of(stage, steps[stage])
            settings = read_settings(RECIPE, stage, {})
            rates = trained_rates(settings.arguments, taken.steps, every)
            found.append(
                Trained(
                    stage,
                    taken.steps,
                    taken.positions,
                    taken.hours,
                    rates,
                    # What came before a run of the recipe; a folder alone may be of another one.
                    source="" if run is None else str(settings.train_data),
                    numbers=run is not None and _with_numbers(settings.arguments, taken.steps),
                )
            )
    return found


def stage_of_run(run: OwnRun, steps: int | None = None, every: Sequence[int] = ()) -> Trained:
    """The stage of a run, which may have begun at a snapshot that an earlier run ended with.

    Rates are those of the run's own curriculum.

    Args:
        steps: of the line, if there are several that the run can have ended at.
        every: the rates that the model trains; see `trained_rates`.

    Raises:
        BoxError: the log has no line that the run can have ended at.
    """
    lines = log_lines(run.stage)
    begins = {(0, 0)} | {(line.steps, line.positions) for line in lines}
    ends = [
        line
        for line in lines
        if (line.steps - run.steps, line.positions - run.positions) in begins
        and steps in (None, line.steps)
    ]
    if not ends:
        asked = f" with {steps:,} steps" if steps else ""
        raise BoxError(
            f"{LOG} has no line of {run.stage}{asked} at which a run of {run.steps:,} steps and "
            f"{run.positions:,} positions can have ended"
        )
    end = ends[-1]
    own = run.steps if run.best is None else run.best
    arguments = run.record.get("arguments") or {}
    rates = trained_rates(arguments, own, every)
    kept = None if run.best is None else end.steps - run.steps + run.best
    validation = (run.record.get("eval_data") or {}).get("split") == "validation"
    earlier = read_settings(RECIPE, run.stage, {}).arguments
    numbers = _with_numbers(arguments, own) or _with_numbers(earlier, end.steps - run.steps)
    return Trained(
        run.stage,
        end.steps,
        end.positions,
        end.hours,
        rates,
        kept=kept,
        source=_source(run),
        numbers=numbers,
        validated=validation and bool(arguments.get("load_best_model_at_end")),
    )


def _source(run: OwnRun) -> str:
    """The file that a run trained on.

    Raises:
        BoxError: the card has no sentence on that file.
    """
    source = str((run.record.get("train_data") or {}).get("source") or "")
    if source and Path(source).name not in FACTBOOK_DATA:
        raise BoxError(
            f"train_data of the run is {source}, and the card knows {', '.join(FACTBOOK_DATA)} "
            "alone: its licence must be stated"
        )
    return source


def _with_numbers(arguments: Mapping[str, Any], steps: int) -> bool:
    """Whether lists of numbers were among the passages of so many steps."""
    return any(phase.get("numbers") for phase in _begun(arguments, steps))


def line_of(stage: str, steps: int) -> Taken:
    """The last line of docs/training-log.md with so many steps: the hours of all that was trained.

    Raises:
        BoxError: there is none.
    """
    lines = [line for line in log_lines(stage) if line.steps == steps]
    if not lines:
        raise BoxError(f"{LOG} has no line of {stage} with {steps:,} steps")
    return lines[-1]


def trained_rates(
    arguments: Mapping[str, Any], steps: int, every: Sequence[int] = ()
) -> tuple[int, ...]:
    """The compression rates that a stage has trained after so many steps, in order.

    Args:
        every: the rates that the model trains, from which a phase without `rates` draws.
    """
    rates = {int(rate) for rate in arguments.get("candidate_rates") or ()}
    for phase in _begun(arguments, steps):
        rates |= {int(rate) for rate in phase.get("rates") or every}
    return tuple(sorted(rates))


def _begun(arguments: Mapping[str, Any], steps: int) -> Iterator[Mapping[str, Any]]:
    """The phases of a curriculum that have begun after so many steps."""
    begin = 0
    for phase in arguments.get("curriculum") or ():
        if begin >= steps:
            return
        yield phase
        begin = phase.get("until") or steps
