"""The public `select_topk`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import (
    require_choice,
    require_floating,
    require_offsets,
    require_positive_int,
    require_same_device,
    require_shape,
)
from .reference import select_topk_reference


def select_topk(
    scores: Tensor,
    memory: Tensor,
    k: int,
    *,
    temperature: float | Tensor,
    relaxation: str = "softmax",
    mask: str = "exact",
    noise: str | None = None,
    seed: int | Tensor | None = None,
    offsets: Tensor | None = None,
    return_probabilities: bool = False,
) -> tuple[Tensor, ...]:
    """Select the memory of the k best candidates, differentiably (straight-through top-k).

    Forward: slot j gets the memory of the candidate with the j-th highest z = scores/temperature
    (+ noise), ties to the lowest index, bit for bit. Backward: with p_j the relaxation of z over
    the candidates that slots before j have not taken, G_j the gradient of slot j and
    a_jl = ⟨G_j, memory_l⟩, the scores get Σ_j Σ_l (∂p_jl/∂score_i) a_jl and the memory of
    candidate l gets G_j if slot j took it. Noise, order and temperature are constants of the
    backward pass. Source: arXiv 2511.18659, "straight-through top-k".

    Args:
        scores: `[B, N]`, any floating-point dtype, computed in float32 (float64 if an input is).
            A candidate at -inf is masked: never taken, probability 0, no gradient. NaN and +inf
            are refused on CPU; elsewhere they are not looked for, since that would wait for the
            device, and make the row's choice arbitrary and its gradient NaN.
        memory: `[B, N, ...]`, as a rule `[B, N, m, H]`; any floating-point dtype.
        k: slots, at least 1. Slots beyond a row's candidates have index -1, zero memory and no
            gradient.
        temperature: above 0, a float or a 0-d tensor (one on CPU is checked, one on another
            device is taken as it is).
        relaxation: "softmax" or "sparsemax".
        mask: "exact" gives taken candidates probability 0. "reference" relaxes
            z + log(1 - taken + 1e-8) as CLaRa's first implementation did: a taken candidate that
            leads by much keeps most of the next slot. Only gradients and probabilities differ.
        noise: None, or "gumbel" to add noise that depends only on the seed, the row and the
            column within the row: the same on every device, for every dtype and batch layout.
        seed: for the noise, an int in [0, 2**64) or a 0-d int64 tensor; not read without noise.
        offsets: int32 `[B + 1]` where rows have unequal numbers of candidates: scores are then
            `[ΣN]`, memory `[ΣN, ...]`, and N stands for the longest row. Read on the host.
        return_probabilities: also return p.

    Returns:
        `selected` `[B, k, ...]` in the dtype of `memory`; `indices` int64 `[B, k]`, columns within
        the row; with `return_probabilities` also p `[B, k, N]`, float32 (float64 if an input is),
        zero where nothing is, differentiable in the scores. All differentiable once.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: shapes, offsets or devices that do not go together, or a value out of range.
    """
    require_floating("scores", scores)
    require_floating("memory", memory)
    require_same_device("memory", memory, "scores", scores)
    if offsets is None:
        require_shape("scores", scores, "[B, N] (or [ΣN] with offsets)", scores.dim() == 2)
        rows, columns = scores.shape
        matches = memory.dim() >= 3 and memory.shape[:2] == scores.shape
        require_shape("memory", memory, f"[{rows}, {columns}, ...]", matches)
    else:
        require_shape("scores", scores, "[ΣN] with offsets", scores.dim() == 1)
        matches = memory.dim() >= 2 and memory.shape[:1] == scores.shape
        require_shape("memory", memory, f"[{scores.shape[0]}, ...]", matches)
        require_offsets("offsets", offsets, scores.shape[0], "scores")
        require_same_device("offsets", offsets, "scores", scores)
    require_positive_int("k", k)
    require_choice("relaxation", relaxation, ("softmax", "sparsemax"))
    require_choice("mask", mask, ("exact", "reference"))
    require_choice("noise", noise, (None, "gumbel"))
    _check_temperature(temperature, scores)
    if noise is not None:
        _check_seed(seed, scores)
    if scores.device.type == "cpu" and not bool((scores < torch.inf).all()):
        raise ValueError("scores must be finite or -inf, got NaN or +inf")

    selected, indices, probabilities = select_topk_reference(
        scores,
        memory,
        k,
        temperature,
        relaxation,
        mask,
        seed if noise is not None else None,
        offsets,
        return_probabilities,
    )
    if probabilities is None:
        return selected, indices
    return selected, indices, probabilities


def _check_temperature(temperature: Any, scores: Tensor) -> None:
    if isinstance(temperature, Tensor):
        require_floating("temperature", temperature)
        require_shape("temperature", temperature, "[]", temperature.dim() == 0)
        if temperature.requires_grad:
            raise ValueError("temperature must not require a gradient: none is defined for it")
        if temperature.device.type != "cpu":
            require_same_device("temperature", temperature, "scores", scores)
            return
    elif isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(
            f"temperature must be a float or a 0-d tensor, got {type(temperature).__name__}"
        )
    value = float(temperature)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"temperature must be above 0 and finite, got {value}")


def _check_seed(seed: Any, scores: Tensor) -> None:
    if seed is None:
        raise ValueError('seed must be given when noise="gumbel", got None')
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int or a 0-d int64 tensor, got {seed.dtype}")
        require_shape("seed", seed, "[]", seed.dim() == 0)
        if seed.device.type != "cpu":
            require_same_device("seed", seed, "scores", scores)
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or a 0-d int64 tensor, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
