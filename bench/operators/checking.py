"""Whether ours computes what it should, and others what ours does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.baselines.compiled import compiling
from bench.printing import first_line
from clara_kernels.dispatch import cpu_tensors_use

from .case import Case, Inputs, Run, Setting, Unavailable, mapped, wide
from .sets import set_count


class Wrong(Exception):
    """An answer is not what it should be, so that nothing is timed."""


@dataclass
class Checked:
    """What may be timed of a case.

    Attributes:
        runs: by implementation, "ours" first, one for each set of inputs; each has run.
        withheld: why the others may not.
        apart: how far ours is from the operator's reference, by its norm; NaN where that was not
            asked for.
        differences: how far the others are from ours, where there is something to compare.
    """

    case: Case
    runs: dict[str, list[Run]]
    withheld: dict[str, str]
    apart: float = math.nan
    differences: dict[str, float] = field(default_factory=dict)

    def demand_right_answers(self, of_all: bool) -> None:
        """
        Args:
            of_all: where nothing says who is right, others that differ from ours count as well.

        Raises:
            Wrong: one of them is wrong.
        """
        tolerance = self.case.tolerance
        if not math.isnan(self.apart) and not self.apart <= tolerance:
            raise Wrong(f"its answer differs from the reference by {self.apart:.1e} of the norm")
        if of_all and any(not apart <= tolerance for apart in self.differences.values()):
            raise Wrong("ours and a baseline do not compute the same")


@compiling()
def check(
    case: Case,
    setting: Setting,
    withheld: Mapping[str, str] | None = None,
    *,
    against_reference: bool = True,
) -> Checked:
    """Compare ours with the operator's reference, in float64 where it has one, and all others with
    ours; what differs or fails is withheld. Functions are compiled here.

    Args:
        withheld: reasons for baselines that are not even tried.
        against_reference: False leaves the reference out, which takes long on large inputs.

    Raises:
        Unavailable: there is no ours.
    """
    first = case.inputs(0)
    sets = [first, *(mapped(first, torch.clone) for _ in range(set_count(case, setting) - 1))]
    runs = {"ours": [case.ours(each) for each in sets]}
    checked = Checked(case, runs, dict(withheld or {}))
    with torch.no_grad():
        ours = comparable(runs["ours"][0])
    if against_reference:
        apart = difference_of(_expected(case, first), ours)
        checked.apart = math.inf if apart is None else apart
    for name, prepare in case.baselines.items():
        if name in checked.withheld:
            continue
        try:
            prepared = [prepare(each) for each in sets]
            with torch.no_grad():
                difference = difference_of(ours, comparable(prepared[0]))
                for run in prepared[1:]:
                    run.call()
        except Exception as error:
            checked.withheld[name] = _reason(error)
            continue
        if difference is not None:
            checked.differences[name] = difference
        if difference is not None and not difference <= case.tolerance:
            checked.withheld[name] = f"its answer differs by {difference:.1e} of the norm"
        else:
            runs[name] = prepared
    with torch.no_grad():
        for run in runs["ours"][1:]:
            run.call()
    return checked


def _expected(case: Case, inputs: Inputs) -> tuple[Tensor, ...] | None:
    """What the operator's reference computes, in our dtypes."""
    with cpu_tensors_use("reference"):
        run = case.reference(inputs) if case.reference else case.ours(wide(inputs))
        with torch.no_grad():
            return comparable(run)


def _reason(error: Exception) -> str:
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return first_line(error)


def comparable(run: Run) -> tuple[Tensor, ...] | None:
    result = run.result(run.call())
    return None if result is None else tuple(each.detach().clone() for each in result)


def difference_of(ours: Any, theirs: Any) -> float | None:
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
