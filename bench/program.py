"""What programs share: options of those that measure on a GPU, and where results are kept."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

COMMITTED = Path(__file__).resolve().parent / "results"


def gpu_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path, help="default: a file in bench/results/GPU/")
    parser.add_argument("--copy", type=Path, action="append", default=[], help="written too")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of `gpu_parser`; a dry run on the CPU takes one thread, and never keeps results."""
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --device cpu makes a dry run")
    if options.device == "cpu":
        if options.output is None:
            parser.error("--device cpu needs --output: a dry run is no result")
        if any(COMMITTED in path.resolve().parents for path in (options.output, *options.copy)):
            parser.error(f"a dry run is no result: {COMMITTED} is for GPUs")
        torch.set_num_threads(1)
    return options


def default_path(device: torch.device, file: str) -> Path:
    """Where results of this GPU are kept."""
    return results_path(torch.cuda.get_device_name(device), file)


def results_path(device: str, file: str) -> Path:
    """Where results of a GPU or a processor are kept.

    Args:
        device: its name, which becomes that of a folder.
    """
    return COMMITTED / re.sub(r"[^A-Za-z0-9._-]+", "-", device).strip("-") / file
