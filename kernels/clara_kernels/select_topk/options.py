"""The options of `select_topk`: what may be given, and the record that implementations take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import (
    index_of,
    is_number,
    require_choice,
    require_floating,
    require_same_device,
    require_shape,
)
from ..dispatch import Arguments, may_read, scalar_tensor

# log(1 - taken + 1e-8) for a taken candidate; for the others it is 0 in float32.
_TAKEN_PENALTY = math.log(1e-8)

OPTIONS_SCHEMA = "Tensor temperature, Tensor? seed, bool sparse, bool leaky"


class Options(NamedTuple):
    """How candidates are ordered and relaxed; the fields are those of OPTIONS_SCHEMA.

    Attributes:
        temperature: 0-d.
        seed: 0-d int64, the 64 bits of an unsigned number; None without noise.
        sparse: the relaxation is sparsemax, not softmax. It and `leaky` change gradients and
            probabilities, not what is selected.
        leaky: the mask is "reference", not "exact".
    """

    temperature: Tensor
    seed: Tensor | None
    sparse: bool
    leaky: bool

    @property
    def noisy(self) -> bool:
        """Whether noise is added."""
        return self.seed is not None

    @property
    def penalty(self) -> float:
        """What is added to the z of a taken candidate."""
        return _TAKEN_PENALTY if self.leaky else -math.inf


def packed(place: int) -> Callable[[Arguments], Arguments]:
    """Puts the four options that begin at `place` of an operator's arguments into a record."""
    end = place + len(Options._fields)

    def pack(arguments: Arguments) -> Arguments:
        return *arguments[:place], Options(*arguments[place:end]), *arguments[end:]

    return pack


def checked_options(
    temperature: Any,
    relaxation: Any,
    mask: Any,
    noise: Any,
    seed: Any,
    scores: Tensor,
    dtype: torch.dtype,
) -> Options:
    """Options as the registered operators take them; TypeError or ValueError for others."""
    require_choice("relaxation", relaxation, ("softmax", "sparsemax"))
    require_choice("mask", mask, ("exact", "reference"))
    require_choice("noise", noise, (None, "gumbel"))
    _check_temperature(temperature, scores)
    temperature = _temperature_tensor(temperature, dtype, scores.device)
    seed = None if noise is None else _seed_tensor(_checked_seed(seed, scores), scores.device)
    return Options(temperature, seed, relaxation == "sparsemax", mask == "reference")


def _check_temperature(temperature: Any, scores: Tensor) -> None:
    if isinstance(temperature, Tensor):
        require_floating("temperature", temperature)
        require_shape("temperature", temperature, "[]", temperature.dim() == 0)
        if temperature.requires_grad:
            raise ValueError("temperature must not require a gradient: none is defined for it")
        if temperature.device.type != "cpu":
            require_same_device("temperature", temperature, "scores", scores)
    elif not is_number(temperature):
        raise TypeError(
            f"temperature must be a float or a 0-d tensor, got {type(temperature).__name__}"
        )
    if torch.compiler.is_compiling() or (
        isinstance(temperature, Tensor) and not may_read(temperature)
    ):
        return
    value = float(temperature)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"temperature must be above 0 and finite, got {value}")


def _checked_seed(seed: Any, scores: Tensor) -> int | Tensor:
    if seed is None:
        raise ValueError('seed must be given when noise="gumbel", got None')
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int or a 0-d int64 tensor, got {seed.dtype}")
        require_shape("seed", seed, "[]", seed.dim() == 0)
        if seed.device.type != "cpu":
            require_same_device("seed", seed, "scores", scores)
        return seed
    number = index_of(seed)
    if number is None:
        raise TypeError(f"seed must be an int or a 0-d int64 tensor, got {type(seed).__name__}")
    if not torch.compiler.is_compiling() and not 0 <= number < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {number}")
    return number


def _temperature_tensor(
    temperature: float | Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if torch.compiler.is_compiling() and not isinstance(temperature, Tensor):
        # A float that fills a tensor is a constant of the graph; one that is multiplied with is an
        # input of it.
        return torch.ones((), dtype=dtype, device=device) * temperature
    return scalar_tensor(temperature, dtype, device)


def _seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """The seed's 64 bits, as a signed number."""
    if isinstance(seed, int) and seed >= 2**63:
        seed -= 2**64
    return scalar_tensor(seed, torch.int64, device)
