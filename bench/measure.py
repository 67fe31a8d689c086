"""Times of calls on a GPU or CPU, and the two ceilings that times are compared with."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Calls = Sequence[Callable[[], Any]]  # the same computation, on one set of inputs each

_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 50
_SHORTEST_SAMPLE = 5e-4


@contextmanager
def own_stream(device: torch.device) -> Iterator[Any]:
    """A stream for all work of a case: a CUDA graph can only be captured from such a one, and the
    backward pass runs on the stream of its forward pass."""
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.synchronize(device)


def capture(calls: Calls, stream: Any) -> Callable[[], Any]:
    """A CUDA graph of the calls, one after another, that have run before; call it to replay it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph.replay


def samples(
    contestants: Mapping[str, Calls], timing: str, device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Seconds per call, sample by sample, of all contestants in turns.

    What slows the machine down for a while then slows down all of them. `contestants` have run
    before, so that nothing is compiled here.

    Args:
        timing: "events" or "latency"; a captured graph is timed by "events" too.
        seconds: to spend, roughly; 0 for two rounds.
    """
    timers = {}
    for name, calls in contestants.items():
        timer = _timer(calls, timing, device)
        timers[name] = (timer, timer(1))
    counts = {
        # Latency is of one call; elsewhere short calls share a pair of events.
        name: 1 if timing == "latency" else max(1, min(200, round(_SHORTEST_SAMPLE / estimate)))
        for name, (_, estimate) in timers.items()
    }
    round_seconds = sum(counts[name] * estimate for name, (_, estimate) in timers.items())
    rounds = min(_MOST_ROUNDS, int(seconds / max(round_seconds, 1e-9)))
    rounds = max(_FEWEST_ROUNDS if seconds else 2, rounds)
    found: dict[str, list[float]] = {name: [] for name in timers}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            order = list(timers) if number % 2 == 0 else list(reversed(timers))
            for name in order:
                found[name].append(timers[name][0](counts[name]))
    finally:
        gc.enable()
    return found


def _timer(calls: Calls, timing: str, device: torch.device) -> Callable[[int], float]:
    """Seconds per call of that many calls, taking the sets of inputs in turns."""
    position = 0

    def run(count: int) -> None:
        nonlocal position
        for _ in range(count):
            calls[position % len(calls)]()
            position += 1

    def by_clock(count: int) -> float:
        _synchronize(device)
        begin = time.perf_counter()
        run(count)
        _synchronize(device)
        return (time.perf_counter() - begin) / count

    def by_events(count: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(count)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    return by_clock if device.type != "cuda" or timing == "latency" else by_events


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 20th and 80th percentile."""
    several = [*seconds] if len(seconds) > 1 else 2 * [*seconds]
    low, *_, high = statistics.quantiles(several, n=5, method="inclusive")
    median = statistics.median(several)
    return {"median_s": median, "p20_s": low, "p80_s": high, "samples": len(seconds)}


def extra_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes allocated at the peak of a call beyond before and beyond what it returns."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    peak = torch.cuda.max_memory_allocated(device)
    tensors = result if isinstance(result, tuple) else (result,)
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return peak - before - sum(storage.nbytes() for storage in storages.values())


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.randint(-(2**31), 2**31 - 1, (size // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, size: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of a square product of random matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    out = torch.empty_like(left)
    return 2 * size**3 / _median(lambda: torch.mm(left, right, out=out), device)


def _median(call: Callable[[], Any], device: torch.device) -> float:
    for _ in range(3):
        call()
    return statistics.median(samples({"": [call]}, "events", device, seconds=0.5)[""])
