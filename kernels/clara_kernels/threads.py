"""Threads of the compiled module beside those of PyTorch."""

from __future__ import annotations

import os

import torch

from .build import native


def processors_are_free() -> bool:
    """Whether the compiled module's threads find processors that PyTorch's do not hold.

    PyTorch's threads go on spinning for milliseconds after each operator. So the compiled module
    works in these same threads where it can, which is so wherever PyTorch computes with OpenMP on
    Linux. A process that was forked cannot: then its threads are others, and find processors free
    with one thread alone, or where idle threads sleep, with `GOMP_SPINCOUNT=0` or
    `OMP_WAIT_POLICY=passive` in the environment before PyTorch is imported.
    """
    return (
        torch.get_num_threads() == 1
        or (native is not None and native.shares_threads())
        or os.environ.get("GOMP_SPINCOUNT") == "0"
        or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    )
