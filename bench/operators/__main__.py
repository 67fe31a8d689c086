"""Benchmarks of the operators of clara_kernels: `python -m bench.operators`.

Every case is checked first (ours and what it is compared with compute the same), then both are
timed in turns, on inputs that together exceed the last cache. Results are written after each case.
On a GPU each operator runs in a process of its own with a time limit, so that one that hangs or
breaks the device costs only itself.

`--device cpu` is a dry run of everything on tiny inputs: it shows that the benchmarks work.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.environment import environment, l2_bytes
from bench.measure import (
    capture,
    copy_bandwidth,
    extra_memory,
    matrix_rate,
    own_stream,
    samples,
    summary,
)
from bench.operators import LIMITS
from bench.operators.case import Case, Run, Setting, Target, Unavailable
from bench.operators.checking import comparable, difference_of, first_line
from bench.results import COMMITTED, Results, default_path, table

_MOST_SETS = 256
_CASE_SECONDS = 0.5


def main(
    arguments: list[str] | None = None,
    limits: Mapping[str, float] = LIMITS,
    file: str = "kernels.json",
    script: str = __file__,
) -> int:
    """Measures the modules of `operators` that `limits` names.

    Args:
        limits: seconds for each of them.
        file: name of the results' file.
        script: what calls this, and is called again for each operator.
    """
    parser = argparse.ArgumentParser(description="Benchmarks of operators of clara_kernels.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path, help=f"default: bench/results/GPU/{file}")
    parser.add_argument("--copy", type=Path, action="append", default=[], help="written too")
    parser.add_argument("--operator", action="append", choices=limits, help="may be repeated")
    parser.add_argument("--only", default="", help="cases whose names match, an expression")
    parser.add_argument("--limit", type=float, help="seconds for all (default: per operator)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --device cpu makes a dry run")
    if device.type == "cpu":
        if options.output is None:
            parser.error("--device cpu needs --output: a dry run is no result")
        if any(COMMITTED in path.resolve().parents for path in (options.output, *options.copy)):
            parser.error(f"a dry run is no result: {COMMITTED} is for GPUs")
        torch.set_num_threads(1)
    results = Results(options.output or default_path(device, file), options.copy)
    setting = Setting(device, tiny=device.type == "cpu")
    names = options.operator or list(limits)
    if options.inside:
        results.load()
        for name in names:
            _measure_operator(name, setting, results, options.only, options.limit)
        return 0

    dry = setting.tiny
    results.start(
        dry_run=dry,
        environment=environment(device),
        ceilings={
            "copy_bytes_per_s": copy_bandwidth(device, setting.size(1 << 30, 1 << 16)),
            "matrix_flops_per_s": matrix_rate(device, setting.size(8192, 64)),
        },
    )
    if not dry:
        torch.cuda.empty_cache()
    end = time.monotonic() + (options.limit or sum(limits.values()))
    for name in names:
        left = end - time.monotonic()
        if dry:
            _measure_operator(name, setting, results, options.only, left)
        else:
            _measure_apart(name, results, min(limits[name], left), options, script)
    print(table(results.content))
    unfit = [case for case in results.content["cases"] if case["status"].startswith("error")]
    return 1 if unfit or results.content["notes"] else 0


def _measure_apart(
    name: str, results: Results, limit: float, options: Any, script: str | None = None
) -> None:
    """One operator in a process of its own; a note is left if it did not end well."""
    if limit < 5:
        results.note(f"{name}: not run, out of time")
        return
    command = [sys.executable, script or __file__, "--inside", "--operator", name]
    command += ["--device", options.device, "--output", str(results.paths[0])]
    command += ["--only", options.only, "--limit", str(limit - 4)]
    for path in results.paths[1:]:
        command += ["--copy", str(path)]
    try:
        status = subprocess.run(command, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        status = None
    results.load()
    if status != 0:
        ended = f"stopped after {limit:.0f} s" if status is None else f"ended with {status}"
        results.note(f"{name}: {ended}")


def _measure_operator(
    name: str, setting: Setting, results: Results, only: str, limit: float | None
) -> None:
    end = time.monotonic() + (limit or math.inf)
    for case in importlib.import_module(f"bench.operators.{name}").cases(setting):
        if not re.search(only, case.name):
            continue
        if time.monotonic() > end:
            found = _description(case) | {"status": "not run, out of time"}
        else:
            found = measure(case, setting, results.content["ceilings"])
        results.add(found)
        print(_line(found), flush=True)


def measure(case: Case, setting: Setting, ceilings: dict[str, float]) -> dict[str, Any]:
    """One case as it stands in the results."""
    found = _description(case)
    try:
        with own_stream(setting.device) as stream:
            _measure_in(found, case, setting, ceilings, stream)
    except Unavailable as missing:
        found["status"] = f"missing: {missing}"
    except Exception as error:
        found["status"] = f"error: {first_line(error)}"
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _measure_in(
    found: dict[str, Any], case: Case, setting: Setting, ceilings: dict[str, float], stream: Any
) -> None:
    device = setting.device
    sets = 2
    if device.type == "cuda":
        sets = max(1, min(_MOST_SETS, math.ceil(4 * l2_bytes(device) / case.bytes)))
    inputs = [case.inputs(seed) for seed in range(sets)]
    runs: dict[str, list[Run]] = {"ours": [case.ours(each) for each in inputs]}
    with torch.no_grad():
        ours = comparable(runs["ours"][0])
        for name, prepare in case.baselines.items():
            with _failure_noted(found["baselines"], name), torch.enable_grad():
                prepared = [prepare(each) for each in inputs]
                theirs = comparable(prepared[0])
                difference = difference_of(ours, theirs)
                found["baselines"][name]["difference"] = difference
                if difference is None or difference <= case.tolerance:
                    runs[name] = prepared
                else:
                    found["baselines"][name]["error"] = f"differs from ours by {difference:.1e}"
    del ours
    if any("differs" in each.get("error", "") for each in found["baselines"].values()):
        found["status"] = "error: ours and a baseline do not compute the same"
        return

    calls: dict[str, list[Any]] = {}
    per_call: dict[str, int] = {}
    for name, prepared in runs.items():
        calls[name] = [run.call for run in prepared]
        per_call[name] = 1
        for call in calls[name]:  # warm, on all inputs
            call()
        if case.timing == "graph" and device.type == "cuda":
            side = found["ours"] if name == "ours" else found["baselines"][name]
            try:
                calls[name], per_call[name] = [capture(calls[name], stream)], sets
            except RuntimeError as error:
                side["not_captured"] = first_line(error)
    timed = samples(calls, case.timing, device, 0 if setting.tiny else _CASE_SECONDS)
    found["sets"] = sets
    for name, seconds in timed.items():
        side = found["ours"] if name == "ours" else found["baselines"][name]
        side.update(summary([each / per_call[name] for each in seconds]))
        side["copy_share"] = case.bytes / side["median_s"] / ceilings["copy_bytes_per_s"]
        side["matrix_share"] = case.flops / side["median_s"] / ceilings["matrix_flops_per_s"]
        if name != "ours":
            side["ratio"] = side["median_s"] / found["ours"]["median_s"]
        if case.candidate_bytes:
            side["extra_bytes"] = extra_memory(runs[name][0].call, device)
    if not setting.tiny:
        for target, entry in zip(case.targets, found["targets"], strict=True):
            entry["measured"] = _measured(target, found, case, ceilings)
    found["status"] = "measured"


def _description(case: Case) -> dict[str, Any]:
    return {
        "operator": case.operator,
        "case": case.name,
        "status": "not run",
        "timing": case.timing,
        "bytes": case.bytes,
        "flops": case.flops,
        **case.details,
        "ours": {},
        "baselines": {name: {} for name in case.baselines},
        "targets": [
            {
                "what": target.what,
                "quantity": target.quantity,
                "of": target.of,
                "at_least": target.at_least,
                "at_most": target.at_most,
                "measured": None,
            }
            for target in case.targets
        ],
    }


@contextmanager
def _failure_noted(sides: dict[str, dict[str, Any]], name: str) -> Iterator[None]:
    try:
        yield
    except Unavailable as missing:
        sides[name]["missing"] = str(missing)
    except Exception as error:
        sides[name]["error"] = first_line(error)


def _measured(
    target: Target, found: dict[str, Any], case: Case, ceilings: dict[str, float]
) -> float | None:
    ours, theirs = found["ours"], found["baselines"].get(target.of, {})
    if target.quantity == "bandwidth":
        return ours["copy_share"]
    if target.quantity == "ratio":
        return theirs.get("ratio")
    if target.quantity == "matrix rate":
        return ours["matrix_share"]
    if target.quantity == "beyond" and "median_s" in theirs:
        beyond = ours["median_s"] - theirs["median_s"]
        return beyond / (case.bytes / ceilings["copy_bytes_per_s"])
    if target.quantity == "extra memory" and ours.get("extra_bytes") is not None:
        return ours["extra_bytes"] / case.candidate_bytes
    return None


def _line(found: dict[str, Any]) -> str:
    name = f"{found['operator']}, {found['case']}"
    if found["status"] != "measured":
        return f"{name}: {found['status']}"
    ours = found["ours"]
    parts = [f"{ours['median_s'] * 1e6:.1f} us", f"{ours['copy_share']:.0%} of copy bandwidth"]
    if found["flops"]:
        parts.append(f"{ours['matrix_share']:.0%} of matrix rate")
    for baseline, side in found["baselines"].items():
        ratio = f"{side['ratio']:.2f} times" if "ratio" in side else "not compared with"
        parts.append(f"{ratio} {baseline}")
    return f"{name}: {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
