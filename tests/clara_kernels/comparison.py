"""How kernels are compared: with float64, allowed twice the error of plain PyTorch."""

from __future__ import annotations

import importlib
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch

from clara_kernels.builds import TYPE_NAMES

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "cpu", "triton"])


def assert_close_to(actual, expected, plain=None, floor=4.0, scale=0.0):
    """Error at most twice that of the same computation in plain PyTorch at the same dtype.

    Args:
        expected: in float64.
        plain: result of plain PyTorch at the dtype of `actual`; None allows rounding alone.
        floor: rounding errors of the largest value that are always allowed.
        scale: a larger value that intermediate results reach, where they cancel.
    """
    assert actual.shape == expected.shape
    assert actual.isfinite().all() == expected.isfinite().all()
    if actual.numel() == 0:
        return
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    error = (actual.double() - expected).abs().max().item()
    allowed = floor * torch.finfo(actual.dtype).eps * max(expected.abs().max().item(), scale)
    if plain is not None:
        allowed += 2 * (plain.detach().cpu().double() - expected).abs().max().item()
    assert error <= allowed, f"off by {error:.3e}, allowed {allowed:.3e}"


def offsets_of(lengths, device="cpu"):
    """int32 offsets of rows of these lengths."""
    return torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)


@contextmanager
def poisoned(operator):
    """Fill with NaN (integers: the largest) whatever the operator's launchers allocate."""
    module = importlib.import_module(f"clara_kernels.{operator}.triton")

    class Poisoned:
        def __getattr__(self, name):
            function = getattr(torch, name)
            if name not in ("empty", "empty_like"):
                return function

            def allocate(*arguments, **options):
                tensor = function(*arguments, **options)
                floating = tensor.is_floating_point()
                return tensor.fill_(torch.nan if floating else torch.iinfo(tensor.dtype).max)

            return allocate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", Poisoned())
        yield


def described(name, types, constants, *options):
    """A build or a launch as something to compare: pointer types, constants and options."""
    pointers = {key: kind for key, kind in types.items() if kind[0] == "*"}
    constants = {key: value for key, value in constants.items() if value is not None}
    return name, frozenset(pointers.items()), frozenset(constants.items()), options


def built(operator, architecture):
    """`described` of all that an operator's `builds` lists."""
    module = importlib.import_module(f"clara_kernels.{operator}.triton")
    return {
        described(
            build.kernel.fn.__name__,
            build.types,
            build.constants,
            build.num_warps,
            build.num_stages,
            build.registers,
        )
        for build in module.builds(architecture)
    }


class _Recorder:
    def __init__(self, kernel, launched):
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid):
        assert min(grid) > 0
        assert grid[0] < 2**31
        assert max((*grid[1:], 1)) < 2**16
        return self._record

    def _record(self, *arguments, num_warps, num_stages=3, maxnreg=None, **constants):
        types = {
            name: f"*{TYPE_NAMES[value.dtype]}"
            for name, value in zip(self.kernel.arg_names, arguments, strict=False)
            if isinstance(value, torch.Tensor)
        }
        constants = {key: value for key, value in constants.items() if key.isupper()}
        name = self.kernel.fn.__name__
        self.launched.add(described(name, types, constants, num_warps, num_stages, maxnreg))


@contextmanager
def launches(operator, architecture):
    """A set that fills with `described` of what would be launched inside; tensors may be "meta"."""
    module = importlib.import_module(f"clara_kernels.{operator}.triton")
    kernels = {build.kernel for build in module.builds(architecture)}
    launched = set()
    with ExitStack() as stack:
        for kernel in kernels:
            home = importlib.import_module(kernel.fn.__module__)
            recorder = _Recorder(kernel, launched)
            stack.enter_context(patch.object(home, kernel.fn.__name__, recorder))
        if hasattr(module, "architecture_of"):
            stack.enter_context(patch.object(module, "architecture_of", lambda _: architecture))
        yield launched
