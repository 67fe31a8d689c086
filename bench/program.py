"""What programs share: options, how they run and end, and where results are kept."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.environment import shown_command
from clara.errors import ClaraError
from clara.terminal.printing import one_line, quiet_libraries

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


def run_on_cpu(
    module: str, arguments: Sequence[str] | None, threads: int, run: Callable[[str], None]
) -> int:
    """The exit status of a program that measures on the CPU; an error is one line.

    Args:
        module: the program is `python -m module`.
        arguments: None are those of the command line.
        run: is given the command, as results name it.
    """
    torch.set_num_threads(threads)
    quiet_libraries()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        run(shown_command(["python", "-m", module, *given]))
    except (ClaraError, ValueError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


def default_path(device: torch.device, file: str) -> Path:
    """Where results of this GPU are kept."""
    return results_path(torch.cuda.get_device_name(device), file)


def results_path(device: str, file: str) -> Path:
    """Where results of a GPU or a processor are kept.

    Args:
        device: its name, which becomes that of a folder.
    """
    return COMMITTED / re.sub(r"[^A-Za-z0-9._-]+", "-", device).strip("-") / file
