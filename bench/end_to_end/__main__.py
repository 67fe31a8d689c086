"""Answers and compression on a GPU, end to end: `python -m bench.end_to_end`.

A batch of questions is answered from memory, from memory with the generator merged, from documents
compressed online, from text and in the reference's way, at 4x, 16x and 128x; documents are
compressed in our way and the reference's. Ways are checked first and get no figure where they do
not compute the same. They are timed in turns, for as long as `--limit` allows. Results, in the
format of `clara bench report`, are written after each measurement.

`--device cpu --backbone random:tiny` is a dry run of everything: it shows that it works.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

import torch

from bench.backbones import NAMES, RANDOM, load
from bench.device import release
from bench.environment import environment
from bench.printing import first_line, promise_lines
from bench.program import default_path, gpu_parser, parsed
from clara.config import Quantization

from .recording import Recording
from .run import PROMISED_BACKBONE, TINY, Run, Size

FILE = "end-to-end.json"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    device = torch.device(options.device)
    end = time.monotonic() + options.limit
    recorder = Recording(options.output or default_path(device, FILE), {}, options.copy)
    details = {"program": "bench.end_to_end", "dry_run": device.type == "cpu"}
    recorder.start(environment(device) | details, options.backbone, options.add, device)
    run = Run(device, recorder, TINY if options.backbone == f"{RANDOM}tiny" else Size())
    failed = False
    can_quantize = find_spec("bitsandbytes") is not None
    if not can_quantize:
        run.withhold_nf4(options.backbone, "bitsandbytes is not installed")
    if device.type == "cuda":
        failed = not run.check_exactly(options.backbone)
    shares: dict[Quantization | None, float] = (
        {None: 0.8, "nf4": 1.0} if can_quantize else {None: 1.0}
    )
    for quantization, share in shares.items():
        try:
            seconds = share * (end - time.monotonic())
            backbone = load(options.backbone, device, quantization=quantization)
            recorder.describe(backbone)
            failed |= not run.all(backbone, seconds)
            del backbone
        except Exception as error:  # of loading: the other one may be possible
            print(f"{options.backbone}, {quantization}: {first_line(error)}", flush=True)
            failed = True
            if quantization:
                run.withhold_nf4(options.backbone, first_line(error))
        release(device)
    for text in promise_lines(recorder.results.promises):
        print(text)
    if device.type == "cpu":
        print("A dry run on CPU: the times mean nothing.")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = gpu_parser("Answers and compression, end to end.")
    parser.add_argument("--backbone", default=PROMISED_BACKBONE, choices=NAMES)
    parser.add_argument(
        "--add", action="store_true", help="keep what a run on the same machine wrote there"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds (default: 300)")
    return parsed(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
