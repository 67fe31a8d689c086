"""The two limits of a device that times are compared with, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.turns import Turns

_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_MATRIX = {"cpu": (2048, torch.float32), "cuda": (8192, torch.bfloat16)}
_SECONDS, _ROUNDS = 0.5, (5, 50)


def measured_ceilings(device: torch.device, *, tiny: bool = False) -> dict[str, float]:
    """Bandwidth of a copy, and rate of a product in the dtype that models have there.

    Args:
        tiny: for a dry run, whose figures mean nothing.
    """
    size, dtype = _MATRIX[device.type]
    return {
        "bandwidth": copy_bandwidth(device, 1 << 16 if tiny else _COPY_BYTES[device.type]),
        "matrix_rate": matrix_rate(device, 64 if tiny else size, dtype),
    }


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.randint(-(2**31), 2**31 - 1, (size // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a square product of random matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    out = torch.empty_like(left)
    return 2 * size**3 / _median(lambda: torch.mm(left, right, out=out), device)


def _median(call: Callable[[], Any], device: torch.device) -> float:
    turns = Turns({"": call}, device, shortest=5e-4, events=device.type == "cuda").warm()
    return turns.run_for(_SECONDS, *_ROUNDS).median("")
