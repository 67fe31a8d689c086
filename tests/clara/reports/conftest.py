"""A file of results as all suites together would write it, its times made up by simple laws."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from clara.reports.results import Measurement, Promise, Results

RATES = (4, 16, 128)
MEMORY, MERGED, ONLINE = "memory", "memory, generator merged", "compressed online"
TEXT, REFERENCE = "text", "reference way, online"
ENVIRONMENT: dict[str, Any] = {
    "device": "Example CPU @ 2.50GHz",
    "threads": 2,
    "python": "3.11.7",
    "torch": "2.10.0",
    "cuda": None,
    "transformers": "5.0.0",
    "peft": "0.18.0",
    "clara": "0.1.0",
    "commit": "0123456789ab",
    "date": "2026-11-26",
    "size": "full",
    "command": "pytest bench --size full --results cpu.json",
}


class Run:
    """Collects measurements whose samples lie around a cost given for each implementation."""

    def __init__(self, seed: int, slowed: dict[tuple[str, str], float]) -> None:
        self.random, self.slowed = random.Random(seed), slowed
        self.results = Results(dict(ENVIRONMENT), {"bandwidth": 1.9e10, "matrix_rate": 1.4e11})

    def seconds(
        self, suite: str, case: str, costs: dict[str, float], parameters: Any, **quantities: float
    ) -> None:
        for name, cost in costs.items():
            cost *= self.slowed.get((suite, name), 1.0)
            samples = [cost * self.random.lognormvariate(0, 0.02) for _ in range(9)]
            self.results.measurements.append(
                Measurement(
                    suite, case, name, dict(parameters), samples=samples, quantities=quantities
                )
            )

    def peaks(self, suite: str, case: str, peaks: dict[str, float], parameters: Any) -> None:
        for name, peak in peaks.items():
            found = Measurement(suite, case, name, dict(parameters), "bytes", [float(peak)])
            self.results.measurements.append(found)


@pytest.fixture(scope="session")
def make() -> Callable[..., Results]:
    """Results of a full run.

    Args of what is returned:
        seed: of the noise.
        slowed: factors by suite and implementation.
    """

    def results(seed: int = 0, slowed: dict[tuple[str, str], float] | None = None) -> Results:
        run = Run(seed, slowed or {})
        for rate in RATES:
            compression(run, rate)
            answers(run, rate)
            searches(run, rate)
            operators(run, rate)
        training(run)
        growth(run)
        run.results.measurements.append(
            Measurement("rank", "search", "faiss", {"rate": 4}, withheld="faiss is not installed")
        )
        run.results.promises += [
            Promise("first token, 16x: times as fast as text", 4.61, at_least=4.0),
            Promise("answer, 16x", 1.2, at_least=1.4, outcome="missed"),
            Promise("search, int8", 3.1, at_least=3.5, outcome="not reachable here"),
            Promise("memory, 16x", 0.28, at_most=0.3),
        ]
        return run.results

    return results


def compression(run: Run, rate: int) -> None:
    costs = {"ours": 6.0 + 24 / rate, "reference way": 26.0 + 20 / rate}
    run.seconds("compress", "throughput", costs, {"rate": rate}, documents=32, tokens=3072)
    peaks = {"ours": 6e8 + 4e8 / rate, "reference way": 2.4e9}
    run.peaks("compress", "peak memory", peaks, {"rate": rate})


def answers(run: Run, rate: int) -> None:
    for k, documents in ((5, 1000), (1, 1000), (20, 1000), (5, 100), (5, 100_000)):
        if rate != 16 and (k, documents) != (5, 1000):
            continue
        prompt = 40 + k * 256 / rate
        memory = 0.06 + prompt * 8e-4 + documents * 2e-8
        first = {
            MEMORY: memory,
            MERGED: 0.8 * memory,
            ONLINE: memory + 0.4 * k,
            TEXT: 0.05 + (40 + k * 256) * 8e-4,
            REFERENCE: memory + 1.1 * k,
        }
        parameters = {"rate": rate, "k": k, "documents": documents}
        run.seconds("question", "time to first token", first, parameters)
        whole = {name: cost + 31 * 0.045 for name, cost in first.items()}
        run.seconds("question", "whole answer", whole, parameters)
        if (k, documents) == (5, 1000):
            stages(run, rate, first)
            generation(run, rate, prompt)


def stages(run: Run, rate: int, first: dict[str, float]) -> None:
    for stage in ("query", "rank", "compress", "first token", "further tokens"):
        costs = {}
        for name, cost in first.items():
            online = name in (ONLINE, REFERENCE)
            before = {
                "query": 0.05 if name != TEXT else 0.0,
                "rank": 0.001 if name in (MEMORY, MERGED) else 0.0,
                "compress": 0.4 * 5 if online else 0.0,
            }
            rest = max(0.01, cost - sum(before.values()))
            costs[name] = {**before, "first token": rest, "further tokens": 31 * 0.045}[stage]
        run.seconds("question", "stage", costs, {"rate": rate, "stage": stage})


def generation(run: Run, rate: int, prompt: float) -> None:
    costs = {MEMORY: prompt * 8e-4, MERGED: prompt * 6e-4, TEXT: 1320 * 8e-4}
    run.seconds("generate", "first token", costs, {"rate": rate}, prompt_tokens=prompt, tokens=1)
    costs = dict.fromkeys(costs, 31 * 0.045)
    run.seconds("generate", "further tokens", costs, {"rate": rate}, tokens=31)
    peaks = {MEMORY: 2e7 + prompt * 5e4, TEXT: 2e7 + 1320 * 5e4}
    run.peaks("generate", "peak memory", peaks, {"rate": rate})


def searches(run: Run, rate: int) -> None:
    width = 576 * 256 // rate
    for documents in (1000, 10_000, 100_000):
        for dtype, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
            read = documents * width * size
            costs = {"ours": 2e-5 + read / 1.7e10, "torch": 4e-5 + documents * width * 4 / 1.2e10}
            parameters = {"rate": rate, "documents": documents, "dtype": dtype}
            run.seconds("rank", "search", costs, parameters, queries=1, bytes=read)
        parameters = {"rate": rate, "documents": documents}
        run.seconds("index", "search", {"ours": 1e-3 + documents * width / 4e9}, parameters)
        run.seconds("index", "build", {"ours": 1e-2 + documents * 1e-4}, parameters)


def operators(run: Run, rate: int) -> None:
    kinds = {
        "memory_attention": (4e9, 2e7),
        "cosine_scores": (5e7, 9e7 / rate),
        "select_topk": (2e6, 3e7 / rate),
        "sparsemax": (0, 1.6e5),
        "memory_alignment_loss": (3e7, 6e7),
        "rank_and_select": (5e7, 1e8 / rate),
        "quantize_memory": (0, 4e7 / rate),
    }
    for number, (operator, (flops, read)) in enumerate(kinds.items()):
        for direction, times in (("forward", 1), ("backward", 2.5)):
            least = times * max(flops / 1.4e11, read / 1.9e10)
            costs = {
                "ours": least / (0.5 + 0.05 * number),
                "eager": 4 * least * times**0.5,
                "torch.compile": 3 * least,
            }
            if operator == "memory_attention":
                costs["flash-attention"] = 1.7 * least
            amounts = {"flops": flops * times, "bytes": read * times}
            run.seconds("operators", f"{operator}, {direction}", costs, {"rate": rate}, **amounts)


def training(run: Run) -> None:
    for case, ours, theirs in (("end-to-end step", 2.7, 62.0), ("instruction step", 4.0, 11.0)):
        run.seconds("training", case, {"ours": ours, "reference way": theirs}, {"rate": 16})
    for rate in RATES:
        costs = {"ours": 7.0 + 8 / rate, "reference way": 21.0}
        run.seconds("training", "pretraining step", costs, {"rate": rate}, tokens=900)
    peaks = {"ours": 2.9e9, "reference way": 9.6e9}
    run.peaks("training", "peak memory of a pretraining step", peaks, {"rate": 16})


def growth(run: Run) -> None:
    for size in (1000, 4000, 16_000, 64_000):
        parameters = {"size": size, "of": "documents in the index"}
        costs = {"float32": 3e-5 + size * 1.2e-6, "int8": 3e-5 + size * 4e-7}
        run.seconds("growth", "search", costs, parameters)
    for size in (32, 64, 128, 256):
        parameters = {"size": size, "of": "tokens of a document"}
        run.seconds("growth", "compress", {"ours": 0.01 + size * 7e-4 + size**2 * 1e-6}, parameters)
    for size in (256, 512, 1024, 2048):
        parameters = {"size": size, "of": "tokens of a prompt"}
        cost = 0.03 + size * 7e-4 + size**2 * 2e-7
        run.seconds("growth", "text prompt", {"ours": cost}, parameters)
    for size in (1, 8, 64, 256):
        parameters = {"size": size, "of": "queries"}
        run.seconds("growth", "search queries", {"ours": 0.01 + size * 3e-4}, parameters)
    for size in (5, 20, 80):
        parameters = {"size": size, "of": "candidates of a question"}
        run.seconds("growth", "rank candidates", {"ours": 1e-4 + size * 1e-5}, parameters)
