"""What programs share that measure the memory of a model on questions of the World Factbook."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara import Clara, ClaraConfig
from clara.data.examples import ExampleFile, RankingExample, ranking_example
from clara.data.factbook import smollm2_file

_UNTRAINED = "span means of SmolLM2-135M, untrained"


def memory_parser(
    program: str, description: str, rates: Sequence[int], **counts: int
) -> argparse.ArgumentParser:
    """Options for a model, the data, rates and results.

    Args:
        counts: further options for numbers, with their defaults.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--model", type=Path, help="folder; default: span means of SmolLM2-135M")
    parser.add_argument("--name", help="what the table calls the model's memory")
    parser.add_argument("--data", type=Path, default=Path("data/factbook/ranking.validation.jsonl"))
    for name, default in {**counts, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rates", type=int, nargs="+", default=list(rates))
    parser.add_argument("--output", type=Path, help="default: a file in bench/results/PROCESSOR/")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.set_defaults(positive=(*counts, "threads"))
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Checked options of `memory_parser`."""
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.name is None):
        parser.error("--model and --name go together")
    options.name = options.name or _UNTRAINED
    for name in options.positive:
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def measured_model(folder: Path | None, **settings: Any) -> Clara:
    """The model of a folder; span means of SmolLM2-135M's embeddings by default."""
    if folder is not None:
        return Clara.from_pretrained(folder, **settings)
    config = ClaraConfig(memory_form="spans", compression_rate=4, document_length=160, **settings)
    return Clara.from_backbone(str(smollm2_file()), config)


def drawn_examples(file: Path, count: int) -> list[RankingExample]:
    """Questions with candidates, the same ones each time, drawn from all over a file."""
    examples = list(ExampleFile(file, ranking_example))
    random.Random(0).shuffle(examples)
    return examples[:count]
