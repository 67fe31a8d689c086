"""Threads of the compiled module beside those of PyTorch."""

from __future__ import annotations

import os

import torch


def processors_are_free() -> bool:
    """Whether the compiled module's threads need not share processors with PyTorch's.

    On Linux, PyTorch computes with threads of GNU's OpenMP. They go on spinning for milliseconds
    after each operator, on the processors that the compiled module's threads need by then: between
    operators of PyTorch, layers on two threads take as long as on one. So processors are free with
    one thread, or where idle threads sleep: with `GOMP_SPINCOUNT=0` or `OMP_WAIT_POLICY=passive` in
    the environment before PyTorch is imported.
    """
    return (
        torch.get_num_threads() == 1
        or os.environ.get("GOMP_SPINCOUNT") == "0"
        or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    )
