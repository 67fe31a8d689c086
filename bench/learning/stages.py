"""The stages of the task, what each is told, and how what was learnt is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from clara import Clara
from clara.files.writing import new_folder, write_text
from clara.training.folder import read_log
from clara.training.run import run
from clara.training.settings import RunSettings

from . import task
from .shapes import USUAL, Shape

BATCH = 64
STEPS = {"text": 2000, "instruct": 3000, "end-to-end": 1500}
"""The second reads what pretraining and instruction tuning do: sheets to write, and questions."""
LEARNING_RATES = {"text": 1e-3, "instruct": 2e-3, "end-to-end": 3e-4}
ABLATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "no-mse": {"alignment_weight": 0.0},
    "frozen-query-reasoner": {"train_query_reasoner": False},
    "no-pretraining": {"stages": ("text", "end-to-end")},
    "no-writing": {"writing": 0.0},
    "repeating": {"phase": {"reconstruction": 0.3}},
    "distillation": {"teacher": "text"},
    "shared-row": {"config": {"distinct_memory_tokens": False}},
    "mean-ranking": {"config": {"ranking": "mean"}},
}
"""Each changes one setting. A `teacher` is the stage whose run instruction tuning learns from. The
last two are settings of form "learned"."""
OF_LEARNED = ("shared-row", "mean-ranking")
_GENERATION: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 256}
_NOT_OF_THE_TRAINER = ("stages", "writing", "phase", "config", "teacher")


@dataclass(frozen=True)
class Score:
    """Shares of the held-out questions.

    Attributes:
        text: answered exactly from the right sheet's text, by the bare backbone.
        memory: answered exactly from the right sheet's memory.
        recall: whose sheet is ranked first.
        answers: answered exactly from the memory that was ranked first.
    """

    text: float
    memory: float
    recall: float
    answers: float


def score(model: Clara, questions: list[dict[str, Any]]) -> Score:
    """By greedy generation, of which only the words are compared."""
    asked = [row["question"] for row in questions]
    wanted = [row["answer"] for row in questions]
    right = [row["docs"][row["pos_index"][0]] for row in questions]
    texts = [text for row in questions for text in row["docs"]]
    memory = model.compress(texts, batch_tokens=8192).memory.unflatten(0, (len(questions), -1))
    rows = torch.arange(len(questions))
    gold = torch.tensor([row["pos_index"][0] for row in questions])
    best = model.rank(asked, memory, top_k=1).indices[:, 0]
    from_text = model.answer_from_text(asked, [[text] for text in right], **_GENERATION)
    from_gold = model.generate(asked, memory[rows, gold][:, None], **_GENERATION)
    from_best = model.generate(asked, memory[rows, best][:, None], **_GENERATION)
    return Score(
        *(_share(_exact(found, wanted)) for found in (from_text, from_gold)),
        _share([bool(same) for same in best == gold]),
        _share(_exact(from_best, wanted)),
    )


def exact_from_memory(model: Clara, questions: list[dict[str, Any]]) -> float:
    """Share answered exactly from the right sheet's memory, as `Score.memory`."""
    right = model.compress([row["docs"][row["pos_index"][0]] for row in questions])
    memory = [right[[row]] for row in range(len(questions))]
    asked = [row["question"] for row in questions]
    found = model.generate(asked, memory, **_GENERATION)
    return _share(_exact(found, [row["answer"] for row in questions]))


def _exact(found: list[str], wanted: list[str]) -> list[bool]:
    return [one.split() == other.split() for one, other in zip(found, wanted, strict=True)]


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


@dataclass
class Curve(TrainerCallback):
    """Scores at every so many steps, in a file as they come."""

    file: Path
    stage: str
    every: int
    report: Callable[[dict[str, Any]], None]
    questions: list[dict[str, Any]]
    began: float = field(default_factory=time.perf_counter)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A stage that was killed does the steps since its last checkpoint, and counts, again."""
        before = read_log(self.file) if self.file.exists() else []
        kept = [r for r in before if r["stage"] != self.stage or r["step"] <= state.global_step]
        write_text(self.file, "".join(json.dumps(record) + "\n" for record in kept))
        if kept and kept[-1]["stage"] == self.stage:
            self.began -= 60 * kept[-1]["minutes"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        begun = time.perf_counter()
        found = score(kwargs["model"].model, self.questions)
        self.began += time.perf_counter() - begun  # measuring is no training
        record = {
            "stage": self.stage,
            "step": state.global_step,
            "minutes": round((time.perf_counter() - self.began) / 60, 2),
            **vars(found),
        }
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.report(record)


def settings_of(
    stage: str,
    folder: Path,
    model: Path | None,
    steps: int,
    seed: int,
    changes: Mapping[str, Any],
    shape: Shape = USUAL,
    stages: Path | None = None,
) -> RunSettings:
    """What a run of `clara train` is told, too.

    Args:
        stages: folder of the runs of earlier stages. Default: `folder`.
    """
    arguments = {
        "output_dir": str(folder / stage),
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": LEARNING_RATES[stage],
        # Memory learns to bind values to keys all at once, at a rate that must be high by then.
        "lr_scheduler_type": "constant_with_warmup" if stage == "instruct" else "cosine",
        "warmup_steps": min(200, steps // 4),
        "adam_beta2": 0.98,
        "logging_steps": 50,
        "save_steps": 500,
        "save_total_limit": 1,
        "report_to": "none",
        "seed": seed,
        "use_cpu": True,
        # Only until it can look keys up in text. Adapters then learn to have memory read as text
        # is; a backbone that trains along forgets how that is done before memory binds.
        "train_backbone": stage == "text",
    }
    known = {k: v for k, v in changes.items() if k not in _NOT_OF_THE_TRAINER}
    plain: dict[str, Any] = {}
    if model is None:
        config = task.config(**shape.config(), **changes.get("config", {}))
        plain = {name: value for name, value in vars(config).items() if name != "backbone"}
    phase = {**shape.phase(), **changes.get("phase", {})}
    if stage == "instruct" and phase:
        arguments["curriculum"] = [phase]
    if stage == "instruct" and "teacher" in changes:
        arguments["teacher"] = str((stages or folder) / changes["teacher"])
    if stage == "end-to-end":
        arguments["selection"] = [{"temperature": 0.1, "temperature_end": 0.02}]
    return RunSettings(
        model=None if model is None else str(model),
        backbone=None if model else str(folder / "backbone"),
        config=plain,
        train_data=str(folder / "data" / f"{stage}.jsonl"),
        eval_data=None,
        train_split="train",
        eval_split="validation",
        arguments={**arguments, **known},
    )


def train(
    folder: Path,
    *,
    ablation: str = "none",
    shape: Shape = USUAL,
    steps: Mapping[str, int] | None = None,
    seed: int = 0,
    every: int = 100,
    questions: int = task.HELD_OUT,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Run the stages one after the other; returns the curve.

    Args:
        folder: of backbone, data and runs. With `resume`, stages that are finished there are left
            alone and one that was killed goes on.
        steps: of each stage, in place of `STEPS`.
    """
    changes = ABLATIONS[ablation]
    counts = {**STEPS, **(steps or {})}
    stages = changes.get("stages", tuple(STEPS))
    curve = folder / "curve.jsonl"
    if not (folder / "data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        task.write_backbone(folder / "backbone", seed=seed)
        sizes = {stage: BATCH * counts[stage] for stage in stages}
        with new_folder(folder / "data") as made:
            task.write_data(made, sizes, seed, writing=changes.get("writing", task.WRITING))
    model: Path | None = None
    asked = task.held_out(questions)
    for stage in stages:
        done = folder / stage / "model"
        if not (resume and done.exists()):
            settings = settings_of(stage, folder, model, counts[stage], seed, changes, shape)
            watch = Curve(curve, stage, every, report, asked)
            run(stage, settings, resume=resume, callbacks=[watch])
        model = done
    return [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
