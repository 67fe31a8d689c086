"""The steps of the chain. Each does what is missing of it, and leaves alone what is there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.learning.stages import settings_of, train
from clara.errors import ClaraError
from clara.evaluation.report.records import rate_apart
from clara.training.folder import MODEL
from clara.training.run import run

from .questions import DOCUMENTS, QUESTIONS, write_questions
from .size import SEED_OF_QUESTIONS, Size

BASELINE = "text-tuned"
SYSTEMS = ("clara", "text", BASELINE, "closed-book")
RANKERS = ("clara", "bm25", "random", "gold")
_ANSWER_TOKENS = 3  # a value, the end, and one too many


class ChainError(ClaraError, RuntimeError):
    """A step of the chain failed, or the chain shows that memory is not read."""


@dataclass(frozen=True)
class Chain:
    """The chain in a folder.

    Attributes:
        folder: of everything that is made; a chain that was killed goes on with what is there.
        size: how much to do.
        seed: of the backbone, the training data and the training.
    """

    folder: Path
    size: Size
    seed: int

    @property
    def learning(self) -> Path:
        """Backbone, data and runs of `bench.learning`, and the run of the text baseline."""
        return self.folder / "learning"

    @property
    def questions(self) -> Path:
        return self.folder / "questions"

    @property
    def evaluation(self) -> Path:
        """Folder of the run of `clara evaluate`."""
        return self.folder / "evaluation"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        """What is done, in this order."""
        return {
            "questions": self.write_questions,
            "training": self.train,
            "text baseline": self.train_baseline,
            "evaluation": lambda: clara(self.evaluate_command()),
            "report": lambda: clara(self.report_command()),
        }

    def write_questions(self) -> None:
        """Questions and documents to evaluate with."""
        if not self.questions.exists():
            write_questions(self.questions, self.size.questions, SEED_OF_QUESTIONS)

    def train(self) -> None:
        """The data and the stages of `bench.learning`: text, instruct, end to end."""
        train(
            self.learning,
            steps=self.size.steps,
            seed=self.seed,
            every=self.size.every,
            questions=self.size.watched,
            resume=True,
            report=_tell,
        )

    def train_baseline(self) -> None:
        """LoRA that reads text, upon the backbone that instruction tuning begins with.

        Records, batches, steps and learning rate are those of instruction tuning.
        """
        folder = self.learning / BASELINE
        if (folder / MODEL).exists():
            return
        steps = self.size.steps["instruct"]
        told = settings_of("instruct", self.learning, None, steps, self.seed, {})
        settings = replace(
            told,
            backbone=str(self.learning / "text" / MODEL / "backbone"),
            arguments={**told.arguments, "output_dir": str(folder)},
        )
        run("text", settings, resume=True)

    def evaluate_command(self) -> list[str]:
        """Arguments of `clara`. One document a question is what the task is learnt with."""
        options = {
            "model": self.learning / "end-to-end" / MODEL,
            "text-model": self.learning / BASELINE,
            "questions": self.questions / QUESTIONS,
            "documents": self.questions / DOCUMENTS,
            "systems": ",".join(SYSTEMS),
            "rankers": ",".join(RANKERS),
            "top-k": 1,
            "max-new-tokens": _ANSWER_TOKENS,
            "device": "cpu",
            "output": self.evaluation,
        }
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return ["evaluate", *given]

    def report_command(self) -> list[str]:
        """Arguments of `clara`."""
        return ["evaluate", "report", str(self.evaluation), "--output", str(self.report)]

    def summary(self) -> dict[str, Any]:
        """What `clara evaluate` measured."""
        summary: dict[str, Any] = json.loads(
            (self.evaluation / "summary.json").read_text(encoding="utf-8")
        )
        return summary

    def check(self) -> None:
        """See that every entry that reads the right sheet's memory does read it.

        Whether it does is what `clara evaluate` says: exact match is at least 10 points above that
        of the better control.

        Raises:
            ChainError: names the entries that do not.
        """
        if not self.size.proves:
            return
        known = [e for e in self.summary()["entries"] if e["system"] == "clara"]
        wanted = [
            entry
            for entry in known
            if not entry["control"] and rate_apart(entry["ranker"])[0] in ("clara", "gold")
        ]
        failed = [entry["entry"] for entry in wanted if not entry["reads_memory"]]
        if failed or not wanted:
            raise ChainError(f"answers do not come from memory: {', '.join(failed) or 'no entry'}")


def clara(arguments: Sequence[str]) -> None:
    """Run a command of the product in a process of its own, and show it.

    Raises:
        ChainError: it failed.
    """
    command = shlex.join(["clara", *arguments])
    print(f"\n{command}", flush=True)
    threads = str(torch.get_num_threads())
    program = [sys.executable, "-c", "from clara.cli import main; main()", *arguments]
    done = subprocess.run(program, env={**os.environ, "OMP_NUM_THREADS": threads})
    if done.returncode:
        raise ChainError(f"{command}: ended with status {done.returncode}")


def _tell(record: dict[str, Any]) -> None:
    shares = ", ".join(f"{name} {record[name]:.3f}" for name in ("text", "memory", "recall"))
    print(f"{record['stage']}, step {record['step']}: {shares}", flush=True)
