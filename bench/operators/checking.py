"""Whether two ways compute the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .case import Run


def comparable(run: Run) -> tuple[Tensor, ...] | None:
    result = run.result(run.call())
    return None if result is None else tuple(each.detach().clone() for each in result)


def difference_of(
    ours: tuple[Tensor, ...] | None, theirs: tuple[Tensor, ...] | None
) -> float | None:
    """Largest ‖ours - theirs‖ / ‖theirs‖ of the tensors; None where there is nothing to compare.

    Integers have to be equal. NaN counts as infinitely far.
    """
    if ours is None or theirs is None:
        return None
    largest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not one.is_floating_point():
            largest = max(largest, 0.0 if torch.equal(one, other) else math.inf)
            continue
        norm = torch.linalg.vector_norm(other.float()).item()
        apart = torch.linalg.vector_norm(one.float() - other.float()).item()
        relative = apart / norm if norm else apart
        largest = max(largest, math.inf if math.isnan(relative) else relative)
    return largest


def first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]
