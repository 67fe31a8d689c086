"""Cases as `pytest bench/` measures them: checked, then timed in turns."""

from __future__ import annotations

import importlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.baselines.compiled import compiling
from bench.environment import l2_bytes
from bench.measure import Calls, samples
from bench.turns import Turns, median_ratio
from clara_kernels.dispatch import cpu_tensors_use

from .case import Case, Inputs, Run, Setting, Unavailable, mapped, wide
from .checking import comparable, difference_of, first_line

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CACHE_BYTES = 32 << 20  # where nothing says how large the last one is
_MOST_BYTES = 256 << 20  # of all sets of inputs on a CPU, of which there are two at least
_MOST_SETS = 64
_SHORTEST_SAMPLE = 2e-3
_MOST_CALLS = 100
_CASE_SECONDS = 0.5  # on a GPU

Samples = dict[str, list[float]]


@dataclass
class Checked:
    """What may be timed of a case.

    Attributes:
        runs: by implementation, "ours" first, one for each set of inputs; each has run.
        withheld: why the others may not.
        apart: how far ours is from the operator's reference, by its norm.
    """

    runs: dict[str, list[Run]]
    withheld: dict[str, str]
    apart: float

    @property
    def calls(self) -> dict[str, Calls]:
        return {name: [run.call for run in runs] for name, runs in self.runs.items()}


def find(module: str, name: str, setting: Setting, rate: int) -> Case:
    """The case of this full name."""
    return next(case for case in cases(module, setting, rate) if case.full_name == name)


def cases(module: str, setting: Setting, rate: int) -> Iterator[Case]:
    return importlib.import_module(f"bench.operators.{module}").at_rate(setting, rate)


@compiling()
def check(case: Case, setting: Setting, withheld: dict[str, str]) -> Checked:
    """Compare ours with the operator's reference, in float64 where it has one, and all others with
    ours; what differs or fails is withheld. Functions are compiled here.

    Args:
        withheld: reasons for baselines that are not even tried.

    Raises:
        Unavailable: there is no ours.
    """
    first = case.inputs(0)
    sets = [first, *(mapped(first, torch.clone) for _ in range(set_count(case, setting) - 1))]
    checked = Checked({"ours": [case.ours(each) for each in sets]}, dict(withheld), math.nan)
    with torch.no_grad():
        ours = comparable(checked.runs["ours"][0])
    checked.apart = _apart(_expected(case, first), ours)
    for name, prepare in case.baselines.items():
        if name in withheld:
            continue
        try:
            runs = [prepare(each) for each in sets]
            with torch.no_grad():
                apart = _apart(ours, comparable(runs[0]))
                for run in runs[1:]:
                    run.call()
        except Exception as error:
            checked.withheld[name] = _reason(error)
            continue
        if not apart <= case.tolerance:
            checked.withheld[name] = f"its answer differs by {apart:.1e} of the norm"
        else:
            checked.runs[name] = runs
    with torch.no_grad():
        for run in checked.runs["ours"][1:]:
            run.call()
    return checked


def _apart(one: Any, other: Any) -> float:
    apart = difference_of(one, other)
    if apart is None:
        raise ValueError("there is nothing to compare")
    return apart


def _expected(case: Case, inputs: Inputs) -> Any:
    """What the operator's reference computes, in our dtypes."""
    with cpu_tensors_use("reference"):
        run = case.reference(inputs) if case.reference else case.ours(wide(inputs))
        with torch.no_grad():
            return comparable(run)


def _reason(error: Exception) -> str:
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return first_line(error)


def set_count(case: Case, setting: Setting) -> int:
    """Sets of inputs that together exceed the last cache."""
    if setting.tiny:
        return 2
    if setting.device.type == "cuda":
        return max(1, min(_MOST_SETS, math.ceil(4 * l2_bytes(setting.device) / case.bytes)))
    together = min(2 * last_cache_bytes(), _MOST_BYTES)
    return max(2, min(_MOST_SETS, math.ceil(together / case.bytes)))


def last_cache_bytes(caches: Path = _CACHES) -> int:
    """The largest of the CPU's caches; Linux says how large they are."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    try:
        texts = [path.read_text().strip() for path in caches.glob("index*/size")]
        return max(int(text[:-1]) * units[text[-1]] for text in texts)
    except (OSError, ValueError, KeyError, IndexError):
        return _CACHE_BYTES


@compiling()
def on_cpu(checked: Checked, fixture: Any, rounds: int) -> Samples:
    """Seconds of a call, by implementation, in turns; pytest-benchmark reports ours.

    Whoever is called takes the next set of inputs, so that none finds in the cache what another
    left there. Short calls are repeated.
    """
    places = itertools.count()
    counts = {name: _call_count(calls) for name, calls in checked.calls.items()}
    repeated = {
        name: partial(_repeat, calls, places, counts[name]) for name, calls in checked.calls.items()
    }
    with torch.no_grad():
        turns = Turns(repeated).benchmark(fixture, "ours", rounds)
    fixture.extra_info["calls"] = counts["ours"]
    return {
        name: [each / counts[name] for each in seconds] for name, seconds in turns.seconds.items()
    }


def _repeat(calls: Calls, places: Iterator[int], count: int) -> None:
    for place in itertools.islice(places, count):
        calls[place % len(calls)]()


def _call_count(calls: Calls) -> int:
    with torch.no_grad():
        seconds = min(_seconds(call) for call in calls[:2])
    return max(1, min(_MOST_CALLS, round(_SHORTEST_SAMPLE / seconds)))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@compiling()
def on_gpu(checked: Checked, setting: Setting) -> Samples:
    """The same by CUDA events."""
    with torch.no_grad():
        seconds = 0 if setting.tiny else _CASE_SECONDS
        return samples(checked.calls, "events", setting.device, seconds)


def amounts(case: Case) -> dict[str, float]:
    """Bytes, and operations where there are any."""
    flops = case.operations or case.flops
    return {"bytes": case.bytes} | ({"flops": flops} if flops else {})


def line(case: Case, found: Samples, withheld: dict[str, str], ceilings: dict[str, float]) -> str:
    """What was found, in words.

    Args:
        ceilings: "bandwidth" and "matrix_rate"; the share is of the one that takes longer.
    """
    ours = statistics.median(found["ours"])
    parts = [f"ours {ours * 1e3:.3g} ms"]
    for name, seconds in found.items():
        if name != "ours":
            parts.append(f"{median_ratio(seconds, found['ours']):.2g} times {name}")
    work = amounts(case)
    least = {
        "bandwidth": work["bytes"] / ceilings["bandwidth"],
        "matrix rate": work.get("flops", 0) / ceilings["matrix_rate"],
    }
    limit = max(least, key=lambda name: least[name])
    parts.append(f"{least[limit] / ours:.0%} of the measured {limit}")
    parts += [f"{name} withheld ({reason})" for name, reason in withheld.items()]
    return ", ".join(parts)
