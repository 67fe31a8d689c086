"""Where the time goes on a CPU: matrix products, attention, norms and elementwise work, Python.

    python -m bench.breakdown                          # a table, within minutes
    python -m bench.breakdown --results FILE.json      # and its figures

On one thread, where times of operators add up. Operators are timed by PyTorch's profiler, the whole
without it; "Python and the rest" is what is left.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.environment import environment
from bench.questions import QUESTION, full_documents
from bench.quote import breakdown
from bench.recording import Recorder
from bench.training_steps import CompressionSteps, model_to_train, pretraining_examples
from bench.ways import by_generate, exactly
from bench.workload import load_model
from clara.data.factbook import smollm2_file

RATE, LENGTH = 16, 256
PARTS = {
    "matrix products": ("mm", "linear", "baddbmm", "mkldnn", "onednn"),
    "attention": ("attention", "softmax"),
    "decoder": ("clara::decode_step",),
}
"""By parts of operators' names. All others are norms, elementwise, copies and the like."""
OTHER, REST = "norms, elementwise, copies", "Python and the rest"
COLUMNS = (*PARTS, OTHER, REST)
DOCUMENTS, FURTHER = 4, 8

Work = Callable[[], object]


def part_of(operator: str) -> str:
    """The one of COLUMNS that an operator's time counts for."""
    name = operator.lower()
    for part in ("decoder", "attention", "matrix products"):
        if any(word in name for word in PARTS[part]):
            return part
    return OTHER


def parts_of(work: Work) -> dict[str, float]:
    """Seconds of operators by part, in one run."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    found = dict.fromkeys((*PARTS, OTHER), 0.0)
    for event in profiled.key_averages():
        found[part_of(event.key)] += event.self_cpu_time_total / 1e6
    return found


def measured(work: Work, less: Work | None, rounds: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of some work, and of its parts in the median run.

    Args:
        less: what is taken off: the time of the first token from that of several.
    """
    works = [work] if less is None else [work, less]
    for each in works:
        each()
    seconds = []
    for _ in range(rounds):
        taken = []
        for each in works:
            begin = time.perf_counter()
            each()
            taken.append(time.perf_counter() - begin)
        seconds.append(max(taken[0] - sum(taken[1:]), 0.0))  # which noise may make negative
    runs = [[parts_of(each) for each in works] for _ in range(rounds)]
    parts = {}
    for name in (*PARTS, OTHER):
        own = [run[0][name] - sum(each[name] for each in run[1:]) for run in runs]
        parts[name] = max(statistics.median(own), 0.0)
    parts[REST] = max(statistics.median(seconds) - sum(parts.values()), 0.0)
    return seconds, parts


def works(backbone: Path, dtype: str, *, length: int) -> dict[str, tuple[Work, Work | None]]:
    """What is measured, by name, and what is taken off."""
    model = load_model(backbone, RATE, dtype=dtype)
    texts = full_documents(DOCUMENTS, model.tokenizer.tokenizer, length)
    memory = model.compress(texts, overflow="truncate").memory[None]

    def answer(tokens: int, *, ours: bool) -> list[str]:
        with nullcontext() if ours else by_generate():
            return model.generate([QUESTION], memory, generation_config=exactly(tokens))

    compress = partial(model.compress, texts, overflow="truncate")
    first = partial(answer, 1, ours=True)
    return {
        f"compress {DOCUMENTS} documents": (compress, None),
        f"first token from {DOCUMENTS} documents": (first, None),
        f"{FURTHER} further tokens, decoder": (partial(answer, FURTHER + 1, ours=True), first),
        f"{FURTHER} further tokens, generate": (
            partial(answer, FURTHER + 1, ours=False),
            partial(answer, 1, ours=False),
        ),
    }


def training_work(backbone: Path) -> dict[str, tuple[Work, Work | None]]:
    model = model_to_train(backbone, RATE)
    steps = CompressionSteps(model, pretraining_examples(model, DOCUMENTS))
    return {f"training step, {DOCUMENTS} documents": (steps.ours, None)}


def record(recorder: Recorder, backbone: Path, *, rounds: int, length: int = LENGTH) -> None:
    """Measure all works in float32 and bfloat16; a training step in float32."""
    for dtype in ("float32", "bfloat16"):
        found = works(backbone, dtype, length=length)
        if dtype == "float32":
            found |= training_work(backbone)
        for name, (work, less) in found.items():
            seconds, parts = measured(work, less, rounds)
            recorder.seconds("breakdown", name, {dtype: seconds}, {"rate": RATE}, parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where the time goes on a CPU.")
    parser.add_argument("--results", type=Path, help="write the figures to this file, too")
    parser.add_argument("--backbone", type=Path, help="default: the packaged SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a document")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler reports each start and end
    command = "python -m bench.breakdown" + (" --results FILE" if options.results else "")
    known = {**environment(torch.device("cpu")), "command": command}
    recorder = Recorder(options.results, known)
    backbone = options.backbone or smollm2_file()
    record(recorder, backbone, rounds=options.rounds, length=options.length)
    print(breakdown(recorder.results).markdown(level=0))


if __name__ == "__main__":
    main()
