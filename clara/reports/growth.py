"""How cost grows with size: the exponent between neighbouring measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clara.reports.results import Measurement, Results

APART = 1.01
"""Two sizes that differ by less than this factor say nothing about growth."""


@dataclass(frozen=True)
class Slope:
    """Growth between two neighbouring points.

    Attributes:
        sizes, costs: of the two points, the smaller size first.
        exponent: slope in logarithms, `cost ~ size ** exponent`: 0 is constant, 1 is linear.
    """

    sizes: tuple[float, float]
    costs: tuple[float, float]
    exponent: float


def local_slopes(sizes: Sequence[float], costs: Sequence[float]) -> list[Slope]:
    """The exponent from each point to the next one.

    A point whose size is less than a factor of `APART` above the point before it is skipped.

    Args:
        sizes: in ascending order.
        costs: as many as sizes.

    Raises:
        ValueError: a size or cost is not positive, sizes do not ascend, or there are more of one
            than of the other.
    """
    points = list(zip(sizes, costs, strict=True))
    if any(min(point) <= 0 for point in points):
        raise ValueError("sizes and costs must be positive")
    if any(after[0] < before[0] for before, after in zip(points, points[1:])):
        raise ValueError("sizes must be in ascending order")
    found: list[Slope] = []
    start = points[0] if points else (0.0, 0.0)
    for point in points[1:]:
        if point[0] >= APART * start[0]:
            (size, cost), (next_size, next_cost) = start, point
            growth = math.log(next_cost) - math.log(cost)
            exponent = growth / (math.log(next_size) - math.log(size))
            found.append(Slope((size, next_size), (cost, next_cost), exponent))
            start = point
    return found


@dataclass(frozen=True)
class Curve:
    """The cost of one thing at several sizes, smallest first.

    Attributes:
        of: what the size counts.
        points: measurements, of different sizes.
        slopes: between the medians of neighbouring points; at least one.
    """

    name: str
    of: str
    unit: str
    points: list[Measurement]
    slopes: list[Slope]

    @property
    def sizes(self) -> list[float]:
        return [float(each.parameters["size"]) for each in self.points]


def curves(results: Results) -> list[Curve]:
    """The curves of all that the suite "growth" measured at two sizes or more."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for each in results.of("growth"):
        size = each.parameters.get("size")
        if isinstance(size, int | float) and size > 0 and each.median > 0:
            name = ", ".join([each.case, *_apart(each)])
            of = str(each.parameters.get("of", "size"))
            groups.setdefault((name, of, each.unit), []).append(each)
    found = []
    for (name, of, unit), points in groups.items():
        points.sort(key=lambda each: each.parameters["size"])
        sizes = [float(each.parameters["size"]) for each in points]
        slopes = local_slopes(sizes, [each.median for each in points])
        if slopes:
            found.append(Curve(name, of, unit, points, slopes))
    return found


def _apart(found: Measurement) -> list[str]:
    """What tells curves of a case apart: implementation and parameters besides the size."""
    others = {name: v for name, v in found.parameters.items() if name not in ("size", "of")}
    names = [f"{name} {value}" for name, value in others.items()]
    return names if found.implementation == "ours" else [found.implementation, *names]
