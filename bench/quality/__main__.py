"""The whole chain in one command: data, training, evaluation, report.

    python -m bench.quality [--size tiny|smoke] [--output FOLDER]

A call that was killed is made again and goes on with what is missing, a training from its last
checkpoint. Ends with 1 if CLaRa's answers do not come from memory, which size `smoke` does not look
at.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.environment import environment
from bench.program import run_on_cpu
from bench.runs import RunFile
from clara.files.writing import write_text

from .chain import Chain
from .size import SEED_OF_QUESTIONS, SIZES
from .told import page

COMPARISON = "quality"
STEPS_FILE = "steps.jsonl"
PAGE = "chain.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status; all arguments are those of the command line."""
    options = _options(arguments)
    output = options.output or Path("build/quality") / options.size
    chain = Chain(output, SIZES[options.size], options.seed)
    return run_on_cpu(
        "bench.quality",
        arguments,
        options.threads,
        lambda command: _run(chain, options.size, command),
    )


def _run(chain: Chain, name: str, command: str) -> None:
    known = {**environment(torch.device("cpu")), "command": command}
    settings = {
        "size": name,
        "seed": chain.seed,
        "seed_of_questions": SEED_OF_QUESTIONS,
        **asdict(chain.size),
    }
    finished = RunFile(chain.folder / STEPS_FILE, COMPARISON, settings, known)
    for step, do in chain.steps.items():
        print(f"\n{step}", flush=True)
        begun = time.perf_counter()
        do()
        if not finished.holds({"step": step}):
            taken = (time.perf_counter() - begun) / 60
            finished.add({"step": step}, {"minutes": round(taken, 2)})
    minutes = {run.names["step"]: run.found["minutes"] for run in finished.runs}
    told = page(chain, name, minutes, known)
    write_text(chain.folder / PAGE, told)
    print(f"\n{told}", flush=True)
    chain.check()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description="Train on a small task, evaluate and report."
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--output", type=Path, help="default: build/quality/SIZE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


if __name__ == "__main__":
    sys.exit(main())
