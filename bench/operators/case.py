"""A case of a benchmark: inputs, ways to compute the same from them, and what is promised."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.baselines.compiled import compiled
from bench.lengths import LONGEST

Inputs = Any  # what a case's `inputs` returns
Prepare = Callable[[Inputs], "Run"]


class Unavailable(Exception):
    """Something to measure is not there: an operator, or what it is compared with."""


@dataclass(frozen=True)
class Run:
    """What is timed, and the comparable part of what it returns (None: nothing to compare)."""

    call: Callable[[], Any]
    result: Callable[[Any], tuple[Tensor, ...] | None] = lambda value: (
        value if isinstance(value, tuple) else (value,)
    )


@dataclass(frozen=True)
class Target:
    """A promise, made for one or more cases.

    Attributes:
        what: the promise in words; cases with the same words share it.
        quantity: "ratio" (times as fast as the baseline `of`), "bandwidth" (share of the measured
            copy bandwidth), "matrix rate" (share of the measured one), "beyond" (time beyond the
            baseline `of`, in bytes / copy bandwidth) or "extra memory" (beyond inputs and results,
            as a share of `Case.candidate_bytes`).
        at_least, at_most: of which one is given.
    """

    what: str
    quantity: str
    of: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        inputs: fresh random inputs from a seed, on the device.
        bytes: the fewest that have to be moved: inputs read once, outputs written once.
        flops: that matrix units would do; 0 where there are none to do.
        timing: "events" around calls one after another, "graph" for replays of a CUDA graph of
            calls, "latency" for the host's time from a call to its end on the device.
        tolerance: norm of the difference by the norm, between ours and a baseline.
        candidate_bytes: what extra memory is compared with; 0 does not measure it.
        operations: additions, multiplications, divisions, comparisons and roundings, whatever does
            them; 0 where they are `flops`.
        reference: the operator's specification; None: the operator's own, of `wide` inputs.
    """

    operator: str
    name: str
    inputs: Callable[[int], Inputs]
    ours: Prepare
    baselines: Mapping[str, Prepare]
    bytes: int
    flops: int = 0
    timing: str = "events"
    tolerance: float = 2e-2
    targets: tuple[Target, ...] = ()
    candidate_bytes: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    operations: int = 0
    reference: Prepare | None = None

    @property
    def full_name(self) -> str:
        return f"{self.operator}, {self.name}"


@dataclass(frozen=True)
class Setting:
    """Where cases run, and how large they are: for a GPU unless told otherwise.

    Attributes:
        tiny: all sizes shrunk, for a dry run.
        small: sizes for a CPU, on which a call takes milliseconds.
        backend: of torch.compile.
    """

    device: torch.device
    tiny: bool
    small: bool = False
    backend: str = "inductor"

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16, or float32 on CPU, and where only numbers are compared."""
        return torch.float32 if self.tiny or self.small else torch.bfloat16

    @property
    def tolerance(self) -> float:
        """What may lie between two ways to compute the same in `dtype`."""
        return 1e-4 if self.dtype == torch.float32 else 2e-2

    def size(self, full: int, tiny: int, small: int | None = None) -> int:
        """
        Raises:
            ValueError: the setting is small, and no size is given for that.
        """
        if self.tiny:
            return tiny
        if not self.small:
            return full
        if small is None:
            raise ValueError("this has no small size, only a full and a tiny one")
        return small

    @property
    def hidden(self) -> int:
        """H of the cases that depend on a compression rate; small, that of SmolLM2-135M."""
        return self.size(2048, 64, 576)

    def compiled(
        self, function: Callable[..., Any], dynamic: bool | None = None
    ) -> Callable[..., Any]:
        """`function`, one of a module, by torch.compile.

        Args:
            dynamic: compile it once for all shapes; None: on a CPU, where compiling it for each
                would take minutes, but on a GPU for each, as suits it best.
        """
        if dynamic is None:
            dynamic = self.device.type == "cpu"
        return compiled(function, dynamic, self.backend)

    def randn(self, seed: int, *shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> Any:
        """Normal random tensors; one alone is returned as it is."""
        generator = torch.Generator(self.device).manual_seed(seed)
        tensors = [
            torch.randn(shape, generator=generator, device=self.device, dtype=dtype or self.dtype)
            for shape in shapes
        ]
        return tensors[0] if len(tensors) == 1 else tensors


def memory_tokens(rate: int) -> int:
    """m of a document of the longest length at a compression rate."""
    return LONGEST // rate


def operator(name: str) -> Callable[..., Any]:
    """A public function of clara_kernels, exported already or not.

    Raises:
        Unavailable: there is none of that name.
    """
    found = getattr(importlib.import_module("clara_kernels"), name, None)
    if found is None or isinstance(found, ModuleType):
        try:
            found = getattr(importlib.import_module(f"clara_kernels.{name}"), name, None)
        except ModuleNotFoundError:
            found = None
    if found is None:
        raise Unavailable(f"clara_kernels has no {name}")
    return found


def gradients(
    forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone, of a forward pass done now."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    with torch.enable_grad():
        output = forward(*leaves)
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)


def mapped(inputs: Inputs, function: Callable[[Tensor], Any]) -> Inputs:
    """Inputs, a tensor or a tuple or dataclass of some, with `function` of each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, tuple):
        return tuple(mapped(each, function) for each in inputs)
    if is_dataclass(inputs):
        own = {each.name: getattr(inputs, each.name) for each in fields(inputs)}
        return replace(inputs, **{name: mapped(value, function) for name, value in own.items()})
    return inputs


def wide(inputs: Inputs) -> Inputs:
    """Floating-point tensors in float64."""
    return mapped(inputs, lambda x: x.double() if x.is_floating_point() else x)
