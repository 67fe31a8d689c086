"""Streams, graphs and memory of a device; on a CPU most of it is nothing to do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from clara.backbone.free_memory import free_memory


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


def capture(calls: Sequence[Callable[[], Any]], stream: Any) -> Callable[[], Any]:
    """A CUDA graph of the calls, one after another, that have run before; call it to replay it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph.replay


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device, once nothing is kept that nobody uses."""
    release(device)
    return free_memory(device)


def peak_allocated(
    call: Callable[[], Any], device: torch.device, *, without_result: bool = False
) -> int | None:
    """Bytes allocated on a GPU at the peak of a call beyond those before; None on a CPU.

    Args:
        without_result: leave out the tensors that the call returns.
    """
    if device.type != "cuda":
        return None
    release(device)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return peak - (_storage_bytes(result) if without_result else 0)


def _storage_bytes(result: Any) -> int:
    tensors = result if isinstance(result, tuple) else (result,)
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())
