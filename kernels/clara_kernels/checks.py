"""Argument checks shared by the public functions. Messages name the argument and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def require_tensor(name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def require_floating(name: str, value: Any) -> None:
    """TypeError unless `value` is a floating-point tensor."""
    require_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")


def require_shape(name: str, value: Tensor, layout: str, ok: bool) -> None:
    """ValueError unless `ok`; `layout` is the accepted shape as text, such as "[B, D]"."""
    if not ok:
        raise ValueError(f"{name} must have shape {layout}, got {list(value.shape)}")


def require_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {value.device}"
        )


def require_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        accepted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}")


def require_positive_int(name: str, value: Any) -> None:
    """TypeError unless `value` is an int, ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_offsets(name: str, offsets: Any, total: int, counted: str) -> None:
    """Check int32 offsets `[count + 1]` that split `total` rows of the argument `counted`.

    The values are read on the host.
    """
    require_tensor(name, offsets)
    if offsets.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {offsets.dtype}")
    require_shape(name, offsets, "[count + 1]", offsets.dim() == 1 and offsets.numel() >= 1)
    values = offsets.tolist()
    if values[0] != 0:
        raise ValueError(f"{name} must start at 0, got {values[0]}")
    if values[-1] != total:
        raise ValueError(f"{name} must end at {total}, the rows of {counted}, got {values[-1]}")
    for row, (start, end) in enumerate(pairwise(values)):
        if end < start:
            raise ValueError(
                f"{name} must not decrease, got {start} then {end} at positions {row} and {row + 1}"
            )
