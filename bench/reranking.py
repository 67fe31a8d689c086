"""How often the right passage comes first, with and without reranking: `python -m bench.reranking`.

Questions of the World Factbook are asked of their twenty candidates. The ranking by the mean is
measured, and that of `Clara.rerank` after it. Without `--model`, memory is span means of
SmolLM2-135M's embeddings and nothing is trained.

Each finished rate becomes a line of the results. `--table` only prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bench.environment import environment
from bench.memory_options import drawn_examples, measured_model, memory_parser, parsed
from bench.program import results_path, run_on_cpu
from bench.runs import Run, RunFile, read_runs
from clara import Clara
from clara.data.examples import RankingExample
from clara.model.answers import Found
from clara.reports.tables import Table

FILE = "reranking.jsonl"
COMPARISON = "reranking"
CUTOFFS = (1, 5)
_TOGETHER = 16  # questions


def recalls(model: Clara, examples: Sequence[RankingExample], rate: int) -> dict[str, list[float]]:
    """Shares of questions with a right document among the first ones, see `CUTOFFS`.

    Returns:
        "mean": as `find` ranks the candidates; "reranked": as `rerank` orders them again.
    """
    hits = {"mean": [0] * len(CUTOFFS), "reranked": [0] * len(CUTOFFS)}
    for start in range(0, len(examples), _TOGETHER):
        part = examples[start : start + _TOGETHER]
        texts = list(dict.fromkeys(text for example in part for text in example.documents))
        memory = model.compress(texts, compression_rate=rate)
        row_of = {text: row for row, text in enumerate(texts)}
        candidates = [memory[[row_of[text] for text in example.documents]] for example in part]
        questions = [example.question for example in part]
        most = max(len(example.documents) for example in part)
        found = model.find(model.encode_queries(questions), candidates, most)
        for name, ranked in (("mean", found), ("reranked", model.rerank(questions, found, most))):
            for example, each in zip(part, ranked, strict=True):
                place = _first_right(example, each)
                for column, cutoff in enumerate(CUTOFFS):
                    hits[name][column] += place < cutoff
    return {name: [count / len(examples) for count in counts] for name, counts in hits.items()}


def _first_right(example: RankingExample, found: Found) -> int:
    right = {example.documents[position] for position in example.positives}
    return next(place for place, each in enumerate(found.documents) if each.text in right)


def reranking(runs: Sequence[Run]) -> Table:
    """Recall by the mean and by every vector, for each memory and rate."""
    rows = [
        (
            run.names["memory"],
            str(run.names["rate"]),
            str(run.settings["questions"]),
            *(", ".join(f"{share:.3f}" for share in run.found[n]) for n in ("mean", "reranked")),
        )
        for run in runs
        if run.comparison == COMPARISON
    ]
    head = ("memory", "tokens a vector", "questions", "by the mean", "by every vector")
    return Table("", head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = memory_parser(
        "bench.reranking", "Recall with and without reranking.", rates=(4, 8), questions=400
    )
    options = parsed(parser, arguments)
    return run_on_cpu("bench.reranking", arguments, options.threads, partial(_run, options))


def _run(options: argparse.Namespace, command: str) -> None:
    known = environment(torch.device("cpu"))
    output = options.output or results_path(str(known["device"]), FILE)
    if options.table:
        print(reranking(read_runs(output)).markdown(level=0), end="")
        return
    settings = {"questions": options.questions, "data": options.data.name}
    finished = RunFile(output, COMPARISON, settings, {**known, "command": command})
    examples = drawn_examples(options.data, options.questions)
    model = measured_model(options.model)
    for rate in options.rates:
        names: dict[str, Any] = {"memory": options.name, "rate": rate}
        if not finished.holds(names):
            run = finished.add(names, recalls(model, examples, rate))
            print(f"{options.name}, rate {rate}: {run.found}", flush=True)
    print(f"\n{reranking(finished.runs).markdown(level=0)}", end="")


if __name__ == "__main__":
    sys.exit(main())
