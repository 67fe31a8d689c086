"""How cost grows with size: a power law through measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clara.benchmarks.results import Measurement, Results

APART = 1.01
"""Sizes closer than this factor say nothing of growth."""


@dataclass(frozen=True)
class PowerLaw:
    """`cost = middle · (size / centre) ** exponent`, least squares in logarithms.

    Attributes:
        centre, middle: geometric means of sizes and costs.
        spread: the largest factor by which a point lies above or below.
    """

    exponent: float
    centre: float
    middle: float
    spread: float

    def at(self, size: float) -> float:
        return self.middle * (size / self.centre) ** self.exponent


def fit(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw:
    """The law through points.

    Raises:
        ValueError: no two sizes that are a factor of `APART` from each other, or a size or cost
            that is not positive.
    """
    if min(*sizes, *costs) <= 0:
        raise ValueError("sizes and costs must be positive")
    if max(sizes) < APART * min(sizes):
        raise ValueError("a fit needs at least two different sizes")
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    slope /= sum((a - mean_x) ** 2 for a in x)
    off = max(abs(b - mean_y - slope * (a - mean_x)) for a, b in zip(x, y, strict=True))
    return PowerLaw(slope, math.exp(mean_x), math.exp(mean_y), math.exp(off))


@dataclass(frozen=True)
class Curve:
    """The cost of one thing at several sizes, smallest first.

    Attributes:
        of: what the size counts.
        points: measurements, of different sizes.
        law: through their medians.
        end: through the last two, where a fixed cost matters least; None where they are too close.
    """

    name: str
    of: str
    unit: str
    points: list[Measurement]
    law: PowerLaw
    end: PowerLaw | None

    @property
    def sizes(self) -> list[float]:
        return [float(each.parameters["size"]) for each in self.points]


def curves(results: Results) -> list[Curve]:
    """Of all that the suite "growth" measured at two sizes or more."""
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
        costs = [each.median for each in points]
        if sizes[-1] >= APART * sizes[0]:
            end = fit(sizes[-2:], costs[-2:]) if sizes[-1] >= APART * sizes[-2] else None
            found.append(Curve(name, of, unit, points, fit(sizes, costs), end))
    return found


def _apart(found: Measurement) -> list[str]:
    """What tells curves of a case apart: implementation and parameters besides the size."""
    others = {name: v for name, v in found.parameters.items() if name not in ("size", "of")}
    names = [f"{name} {value}" for name, value in others.items()]
    return names if found.implementation == "ours" else [found.implementation, *names]
