"""How soon forms of memory are read, on the task of `bench/learning`.

    python -m bench.learning.comparison [--seeds 3]

For each form of memory and each ablation, instruction tuning goes on until 60 % of the held-out
questions are answered from the right sheet's memory; the number of steps is what is measured. All
of a seed start from one text stage and read the same records.

Each finished training becomes a line of the results; a call that was killed is made again and goes
on with what is missing, from the last checkpoint. `--table` only prints.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.environment import environment
from bench.memory_forms import FORMS
from bench.program import results_path, run_on_cpu
from bench.runs import RunFile, read_runs
from bench.watching import Watch
from clara.files.writing import new_folder
from clara.training.folder import MODEL
from clara.training.run import run

from . import task
from .shapes import USUAL, VECTORS, Shape
from .stages import ABLATIONS, BATCH, STEPS, exact_from_memory, settings_of
from .table import COMPARISON, learning

FILE = "learning.jsonl"
_SAVED_EVERY = 2
"""Minutes between checkpoints. Most trainings end before the first step at which stages save."""


@dataclass(frozen=True)
class Case:
    """A form of memory, and what is changed besides."""

    shape: Shape
    ablation: str = "none"

    @property
    def folder(self) -> str:
        return f"{self.shape.form}-{self.shape.vectors}-{self.ablation}"


CASES = [
    *(Case(Shape(form, vectors)) for vectors in VECTORS for form in FORMS),
    Case(USUAL, "shared-row"),
    Case(USUAL, "no-writing"),
    Case(USUAL, "repeating"),
    Case(USUAL, "distillation"),
    Case(Shape("spans", 3), "no-writing"),
    Case(Shape("spans", 3), "repeating"),
    Case(Shape("spans", 3), "distillation"),
]


@dataclass(frozen=True)
class Size:
    """What all trainings have in common.

    Attributes:
        text_steps: of the text stage, which all cases of a seed share.
        most: steps of instruction tuning after which the goal counts as not reached.
        every: steps between two measurements.
        questions: that are held out.
        goal: share of them to answer from the right memory.
    """

    text_steps: int = STEPS["text"]
    most: int = STEPS["instruct"]
    every: int = 5
    questions: int = task.HELD_OUT
    goal: float = 0.6


def teach(case: Case, seed: int, size: Size, work: Path) -> dict[str, Any]:
    """Train until the goal or the end; returns the steps it took, None for the end, and the curve.

    Args:
        work: folder of this seed. A call that was killed goes on with what is there.
    """
    backbone = _text_stage(seed, size, work)
    changes = ABLATIONS[case.ablation]
    data = _data(seed, size, work, changes.get("writing", task.WRITING)) / "instruct.jsonl"
    folder = work / case.folder
    asked = task.held_out(size.questions)
    watch = Watch(
        folder / "curve.jsonl",
        size.every,
        lambda model: {"memory": exact_from_memory(model, asked)},
        lambda record: record["memory"] >= size.goal,
    )
    if not (folder / "instruct" / MODEL).exists():
        settings = settings_of("instruct", folder, None, size.most, seed, changes, case.shape, work)
        settings = replace(settings, backbone=str(backbone), train_data=str(data))
        settings.arguments["save_minutes"] = _SAVED_EVERY
        run("instruct", settings, resume=True, callbacks=[watch])
    curve = watch.records
    reached = [record["step"] for record in curve if record["memory"] >= size.goal]
    return {"steps": reached[0] if reached else None, "curve": curve}


def _text_stage(seed: int, size: Size, work: Path) -> Path:
    """Teach the bare backbone the task from text; returns its folder."""
    trained = work / "text" / MODEL
    if not trained.exists():
        data = _data(seed, size, work, task.WRITING)
        task.write_backbone(work / "backbone", seed=seed)
        settings = settings_of("text", work, None, size.text_steps, seed, {})
        run("text", replace(settings, train_data=str(data / "text.jsonl")), resume=True)
    return trained / "backbone"


def _data(seed: int, size: Size, work: Path, writing: float) -> Path:
    """Folder of the records that all cases read, but those with another share of writing."""
    folder = work / f"data-{writing:g}"
    if not folder.exists():
        with new_folder(folder) as made:
            counts = {"text": BATCH * size.text_steps, "instruct": BATCH * size.most}
            task.write_data(made, counts, seed, writing=writing)
    return folder


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> int:
    options = _options(arguments)
    measured = partial(_run, options, size)
    return run_on_cpu("bench.learning.comparison", arguments, options.threads, measured)


def _run(options: argparse.Namespace, size: Size, command: str) -> None:
    known = environment(torch.device("cpu"))
    output = options.output or results_path(str(known["device"]), FILE)
    if options.table:
        print(learning(read_runs(output)).markdown(level=0), end="")
        return
    finished = RunFile(output, COMPARISON, vars(size), {**known, "command": command})
    for seed in range(options.seeds):
        for case in CASES:
            names = {**vars(case.shape), "ablation": case.ablation, "seed": seed}
            if finished.holds(names):
                continue
            work = options.work / f"seed-{seed}"
            found = teach(case, seed, size, work)
            finished.add(names, found)
            shutil.rmtree(work / case.folder)
            print(f"seed {seed}, {case.folder}: {found['steps']} steps", flush=True)
    print(f"\n{learning(finished.runs).markdown(level=0)}", end="")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning.comparison", description="Compare forms of memory."
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: a file in bench/results/PROCESSOR/")
    parser.add_argument("--work", type=Path, default=Path("build/comparison"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is there, train nothing")
    options = parser.parse_args(arguments)
    for name in ("seeds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
