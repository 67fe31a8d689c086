"""Benchmarks of the operators of clara_kernels on a GPU: `python -m bench.operators`.

Every case is checked first (ours and what it is compared with compute the same), then both are
timed in turns, on inputs that together exceed the last cache. Results, in the format of
`clara bench report`, are written after each case. On a GPU each operator runs in a process of its
own with a time limit, so that one that hangs or breaks the device costs only itself.

`--suite scoring` measures exact search. `--device cpu` is a dry run of everything on tiny inputs:
it shows that the benchmarks work.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from bench.device import release
from bench.environment import ROOT, environment
from bench.operators import LIMITS
from bench.operators.case import Setting, Unavailable
from bench.operators.promises import Figure, figures, judged
from bench.operators.suite import SUITE, Timed, cases, for_seconds, line, measure
from bench.printing import first_line, promise_lines
from bench.program import default_path, gpu_parser, parsed
from bench.recording import Recorder

FILES = {"operators": "kernels.json", "scoring": "scoring.json"}
SOME_FAILED = 3
"""Exit status of a process that measures one operator; 1 is that of any Python that fails."""
STARTING = 4.0
"""Seconds that a process gets to start and to end in; it measures for the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    device = torch.device(options.device)
    setting = Setting(device, tiny=device.type == "cpu")
    output = options.output or default_path(device, FILES[options.suite])
    details = {"program": f"bench.operators, {options.suite}", "dry_run": setting.tiny}
    recorder = Recorder(output, environment(device) | details, options.copy)
    limits = LIMITS[options.suite]
    names = options.operator or list(limits)
    if options.inside:
        recorder.resume()
        passed = [
            measure_operator(each, setting, recorder, options.only, options.limit) for each in names
        ]
        return 0 if all(passed) else SOME_FAILED

    recorder.measure_ceilings(device, tiny=setting.tiny)
    release(device)
    end = time.monotonic() + (options.limit or sum(limits.values()))
    failed = False
    for name in names:
        left = end - time.monotonic()
        if setting.tiny:
            failed |= not measure_operator(name, setting, recorder, options.only, left)
        else:
            failed |= not measure_apart(name, recorder, min(limits[name], left), options)
    _print_end(recorder, setting)
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = gpu_parser("Benchmarks of operators of clara_kernels.")
    parser.add_argument("--suite", choices=LIMITS, default="operators")
    every = [name for limits in LIMITS.values() for name in limits]
    parser.add_argument("--operator", action="append", choices=every, help="may be repeated")
    parser.add_argument("--only", default="", help="cases whose names match, an expression")
    parser.add_argument("--limit", type=float, help="seconds for all (default: per operator)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parsed(parser, arguments)
    for name in options.operator or ():
        if name not in LIMITS[options.suite]:
            parser.error(f"--operator {name} is not one of --suite {options.suite}")
    return options


def measure_apart(
    name: str,
    recorder: Recorder,
    limit: float,
    options: argparse.Namespace,
    program: Sequence[str] = ("-m", "bench.operators"),
) -> bool:
    """One operator in a process of its own; the results say so if it did not end well."""
    if limit < STARTING + 1:
        recorder.withhold(SUITE, name, "ours", "not run, out of time")
        return False
    command = [sys.executable, *program, "--inside", "--suite", options.suite]
    command += ["--operator", name, "--device", options.device, "--only", options.only]
    command += ["--limit", str(limit - STARTING), "--output", str(recorder.path)]
    for path in recorder.copies:
        command += ["--copy", str(path)]
    try:
        status = subprocess.run(command, timeout=limit, cwd=ROOT).returncode
        ended = f"its process ended with {status}"
    except subprocess.TimeoutExpired:
        status, ended = None, f"stopped after {limit:.0f} s"
    recorder.resume()
    if status not in (0, SOME_FAILED):
        recorder.withhold(SUITE, name, "ours", ended)
    return status == 0


def measure_operator(
    name: str, setting: Setting, recorder: Recorder, only: str, limit: float
) -> bool:
    """All cases of a module of `bench.operators`, and what is promised of them; whether none
    failed. What the machine lacks is no failure."""
    end, passed = time.monotonic() + limit, True
    found: list[Figure] = []
    ceilings = recorder.results.ceilings
    for case in cases(name, setting):
        if not re.search(only, case.name):
            continue
        timed: Timed | None = None
        try:
            if time.monotonic() > end:
                reason = "not run, out of time"
                recorder.withhold(SUITE, case.full_name, "ours", reason, **case.details)
                said = reason
            else:
                run = for_seconds(setting)
                timed = measure(case, setting, run, recorder, against_reference=False)
                said = line(case, timed, ceilings)
        except Unavailable as missing:
            said = f"missing: {missing}"
        except Exception as error:  # of one case: the others may be possible
            said, passed = f"FAILED: {first_line(error)}", False
        print(f"{case.full_name}: {said}", flush=True)
        found += figures(case, timed, ceilings)
    for promise, worst in judged(found) if not setting.tiny else ():
        recorder.promise(promise)
        print(f"{promise}; the worst case is {worst}", flush=True)
    return passed


def _print_end(recorder: Recorder, setting: Setting) -> None:
    withheld = [each for each in recorder.results.measurements if each.withheld]
    for each in withheld:
        if each.implementation == "ours":
            print(f"{each.case}: {each.withheld}")
    for text in promise_lines(recorder.results.promises):
        print(text)
    if setting.tiny:
        print("A dry run on CPU: the times mean nothing.")


if __name__ == "__main__":
    sys.exit(main())
