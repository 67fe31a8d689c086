"""Whether training learns what it should: the task of `bench/learning`, on the CPU.

    python -m bench.learning [--ablation NAME] [--form FORM] [--vectors N] [--resume]

Prints the scores as they come and writes curve.jsonl, result.json and learning.png. Ends with 1 if
fewer than 60 % of the held-out questions are answered from memory, or fewer at the end than before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bench.learning.shapes import USUAL, VECTORS, Shape
from bench.learning.stages import ABLATIONS, OF_LEARNED, STEPS, train
from bench.memory_forms import FORMS
from clara.terminal.printing import quiet_libraries

REQUIRED = 0.6
WANTED = {"answers": 0.9, "recall": 0.95}
_HEAD = (
    f"{'stage':12}{'step':>6}{'minutes':>9}{'text':>8}{'memory':>8}{'recall@1':>10}{'answers':>9}"
)


def show(record: dict[str, Any]) -> None:
    shares = f"{record['text']:8.3f}{record['memory']:8.3f}{record['recall']:10.3f}"
    print(
        f"{record['stage']:12}{record['step']:6}{record['minutes']:9.1f}{shares}"
        f"{record['answers']:9.3f}",
        flush=True,
    )


def draw(curve: list[dict[str, Any]], file: Path) -> None:
    """Scores over the steps of all stages, one after the other."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    before, places, stage, last = 0, [], None, 0
    for record in curve:
        if record["stage"] != stage:
            before, stage = before + last, record["stage"]
            axis.axvline(before, color="0.8")
            axis.text(before, 1.02, f" {stage}", fontsize="small")
        last = record["step"]
        places.append(before + last)
    for name, label in (
        ("text", "exact match, text"),
        ("memory", "exact match, memory of the right sheet"),
        ("recall", "recall@1 of 8"),
        ("answers", "exact match, memory ranked first"),
    ):
        axis.plot(places, [record[name] for record in curve], label=label)
    axis.set_xlabel("step")
    axis.set_ylim(0, 1.08)
    axis.legend(fontsize="small", loc="center left")
    figure.savefig(file, format="png", dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what training learns.")
    parser.add_argument("--ablation", choices=ABLATIONS, default="none")
    parser.add_argument("--form", choices=FORMS, default="learned", help="of memory")
    parser.add_argument("--vectors", type=int, choices=VECTORS, default=5, help="of a sheet")
    parser.add_argument("--output", type=Path, default=Path("build/learning"))
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps",
        type=int,
        help="of every stage, to try the machinery (default: as many as needed)",
    )
    arguments = parser.parse_args()
    if arguments.form != "learned" and arguments.ablation in OF_LEARNED:
        parser.error(f"--ablation {arguments.ablation} is of form learned, not {arguments.form}")
    shape = Shape(arguments.form, arguments.vectors)
    torch.set_num_threads(arguments.threads)
    quiet_libraries()
    name = "" if shape == USUAL else f"{shape.form}-{shape.vectors}-"
    folder = arguments.output / f"{name}{arguments.ablation}"
    if folder.exists() and not arguments.resume:
        shutil.rmtree(folder)
    print(_HEAD)
    curve = train(
        folder,
        ablation=arguments.ablation,
        shape=shape,
        steps=dict.fromkeys(STEPS, arguments.steps) if arguments.steps else None,
        seed=arguments.seed,
        resume=arguments.resume,
        report=show,
    )
    draw(curve, folder / "learning.png")
    last = curve[-1]
    ends = {record["stage"]: record["minutes"] for record in curve}
    result = {
        "ablation": arguments.ablation,
        "form": shape.form,
        "vectors": shape.vectors,
        "minutes": round(sum(ends.values()), 1),
        "threads": arguments.threads,
        "seed": arguments.seed,
        **{name: last[name] for name in ("text", "memory", "recall", "answers")},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    missed = [name for name, share in WANTED.items() if last[name] < share]
    if missed:
        print(f"not reached: {', '.join(f'{n} {last[n]:.3f} of {WANTED[n]}' for n in missed)}")
    return 0 if last["answers"] >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
