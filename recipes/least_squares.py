"""Least squares with a small norm, by which maps of connectors are begun."""

from __future__ import annotations

import torch
from torch import Tensor


def solved(inputs: Tensor, outputs: Tensor, ridge: float) -> Tensor:
    """`[H, K]` in float32: inputs `[N, H]` times it are about the outputs `[N, K]`.

    Args:
        ridge: weight of its own squares beside those of the error.
    """
    wide = inputs.double()
    normal = wide.T @ wide + ridge * torch.eye(wide.shape[1], dtype=wide.dtype)
    return torch.linalg.solve(normal, wide.T @ outputs.double()).float()


def to_one(states: Tensor, ridge: float) -> Tensor:
    """`[H]`, whose product with each of the states `[N, H]` is about 1."""
    return solved(states, torch.ones(len(states), 1), ridge).squeeze(1)
