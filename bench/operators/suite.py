"""Cases as all benchmarks of operators measure them: checked, timed in turns, recorded."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.baselines.compiled import compiling
from bench.device import capture, own_stream, peak_allocated, release
from bench.printing import first_line
from bench.recording import Recorder
from bench.turns import Turns, median_ratio

from .case import Case, Setting, Unavailable
from .checking import Checked, Wrong, check

SUITE = "operators"

_SHORTEST = {"cpu": 2e-3, "cuda": 5e-4}  # seconds of a sample; shorter calls are repeated
_CASE_SECONDS, _ROUNDS = 0.5, (5, 50)  # of a case that is timed for as long, not for so many rounds

Samples = dict[str, list[float]]
Run = Callable[[Turns], Turns]


@dataclass
class Timed:
    """What was found out about a case.

    Attributes:
        seconds: by implementation, those of a round at the same place.
        withheld: why others have none.
        not_captured: why calls are timed one after another and not in a CUDA graph.
        extra_bytes: allocated at the peak of a call beyond inputs and results, where it is asked.
    """

    seconds: Samples
    withheld: dict[str, str]
    not_captured: dict[str, str] = field(default_factory=dict)
    extra_bytes: dict[str, int] = field(default_factory=dict)


def find(module: str, name: str, setting: Setting, rate: int) -> Case:
    """The case of this full name."""
    return next(case for case in cases(module, setting, rate) if case.full_name == name)


def cases(module: str, setting: Setting, rate: int | None = None) -> Iterator[Case]:
    """At a compression rate as `pytest bench/` measures them, or else as a GPU does."""
    found = importlib.import_module(f"bench.operators.{module}")
    return found.cases(setting) if rate is None else found.at_rate(setting, rate)


def for_seconds(setting: Setting) -> Run:
    """Rounds for half a second, of a dry run two."""
    if setting.tiny:
        return lambda turns: turns.run(2)
    return lambda turns: turns.run_for(_CASE_SECONDS, *_ROUNDS)


def by_fixture(fixture: Any, rounds: int) -> Run:
    """Rounds of pytest-benchmark, which reports ours."""

    def run(turns: Turns) -> Turns:
        turns.benchmark(fixture, "ours", rounds)
        fixture.extra_info["calls"] = turns.counts["ours"]
        return turns

    return run


def measure(
    case: Case,
    setting: Setting,
    run: Run,
    recorder: Recorder,
    withheld: Mapping[str, str] | None = None,
    *,
    against_reference: bool = True,
    **where: Any,
) -> Timed:
    """Check a case, time it, and record it or the reason why it has no figures.

    Args:
        withheld: reasons for baselines that are not even tried.
        against_reference: ours has to compute what the operator's reference does; else the others
            have to compute what ours does.
        where: parameters of the measurements, besides those of the case.

    Raises:
        Unavailable: there is no ours.
        Wrong: an answer is not what it should be.
    """
    parameters = {**case.details, **where}
    release(setting.device)  # of the case before
    checked: Checked | None = None
    try:
        with own_stream(setting.device) as stream:
            checked = check(case, setting, withheld, against_reference=against_reference)
            checked.demand_right_answers(of_all=not against_reference)
            timed = time_case(checked, setting, run, stream)
        of_each = {name: _quantities(checked, timed, name) for name in timed.seconds}
        recorder.seconds(SUITE, case.full_name, timed.seconds, parameters, of_each=of_each)
    except Exception as error:
        known = isinstance(error, Unavailable | Wrong)
        reason = str(error) if known else first_line(error)
        recorder.withhold(SUITE, case.full_name, "ours", reason, **parameters)
        raise
    finally:
        for name, reason in checked.withheld.items() if checked is not None else ():
            recorder.withhold(SUITE, case.full_name, name, reason, **parameters)
    return timed


@compiling()
def time_case(checked: Checked, setting: Setting, run: Run, stream: Any = None) -> Timed:
    """Seconds of a call of each implementation, in turns.

    Args:
        stream: of all work on a GPU, from which CUDA graphs are captured.
    """
    case, on_gpu = checked.case, setting.device.type == "cuda"
    timed = Timed({}, checked.withheld)
    calls: dict[str, Sequence[Callable[[], Any]]] = {}
    computed = dict.fromkeys(checked.runs, 1)
    for name, runs in checked.runs.items():
        calls[name] = [each.call for each in runs]
        if case.timing == "graph" and on_gpu:
            try:
                with torch.no_grad():
                    calls[name], computed[name] = [capture(calls[name], stream)], len(runs)
            except RuntimeError as error:
                timed.not_captured[name] = first_line(error)
    latency = case.timing == "latency"  # of one call alone, until the device has done it
    shortest = 0.0 if latency else _SHORTEST[setting.device.type]
    turns = Turns(calls, setting.device, shortest, events=on_gpu and not latency)
    with torch.no_grad():
        run(turns.warm())
        for name, seconds in turns.seconds.items():
            timed.seconds[name] = [each / computed[name] for each in seconds]
        for name, runs in checked.runs.items() if case.candidate_bytes else ():
            extra = peak_allocated(runs[0].call, setting.device, without_result=True)
            if extra is not None:
                timed.extra_bytes[name] = extra
    return timed


def _quantities(checked: Checked, timed: Timed, name: str) -> dict[str, float]:
    """What a call does, and how far it is from ours; of what computes something else, nothing."""
    found: dict[str, float] = {}
    if name == "ours" or name in checked.differences:
        found |= amounts(checked.case)
    if name in checked.differences:
        found["difference"] = checked.differences[name]
    if name in timed.extra_bytes:
        found["extra_bytes"] = timed.extra_bytes[name]
    return found


def amounts(case: Case) -> dict[str, float]:
    """Bytes, and operations where there are any."""
    flops = case.operations or case.flops
    found: dict[str, float] = {"bytes": case.bytes}
    return found | {"flops": flops} if flops else found


def line(case: Case, timed: Timed, ceilings: Mapping[str, float]) -> str:
    """What was found, in words.

    Args:
        ceilings: "bandwidth" and "matrix_rate"; the share is of the one that takes longer.
    """
    ours = statistics.median(timed.seconds["ours"])
    parts = [f"ours {ours * 1e3:.3g} ms"]
    for name, seconds in timed.seconds.items():
        if name != "ours":
            parts.append(f"{median_ratio(seconds, timed.seconds['ours']):.2g} times {name}")
    work = amounts(case)
    least = {
        "bandwidth": work["bytes"] / ceilings["bandwidth"],
        "matrix rate": work.get("flops", 0) / ceilings["matrix_rate"],
    }
    limit = max(least, key=lambda name: least[name])
    parts.append(f"{least[limit] / ours:.0%} of the measured {limit}")
    parts += [f"{name} withheld ({reason})" for name, reason in timed.withheld.items()]
    parts += [f"{name} not in a graph ({reason})" for name, reason in timed.not_captured.items()]
    return ", ".join(parts)
