"""How kernels are compared: with float64, allowed twice the error of plain PyTorch."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import pytest
import torch

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
