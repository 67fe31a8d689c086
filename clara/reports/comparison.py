"""Two runs of the same benchmarks: what changed beyond noise.

The two runs were made at different times on a machine that may have had other work, and most
measurements have few samples. Samples of one run resemble each other more than those of another,
so that more of them do not make a median much surer, and noise is not divided by the root of
their number. Medians have to lie further apart than the spreads of both runs together, each from
the 20th to the 80th percentile, and further than 5 %. Few samples understate their spread: of n it
counts 1 + 2/n times. One or two say too little: their times have to differ by 25 %.

With normal noise of 5 % between samples and 2.5 % between runs, an unchanged measurement of five
samples is called changed once in some 80 times, one of nine once in some 300; ten per cent of
difference is then found seldom, thirty per cent nearly always. Bytes have one sample and are
nearly the same in each run: 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from clara.reports.results import Measurement, Results

LEAST_NOISE = 0.05
NOISE_OF_FEW = 0.25
"""Of the times of fewer than three samples."""

_FIRST_OF_ALL = ("device", "size", "threads")
_OF_EVERY_RUN = ("commit", "sources", "date", "command")


@dataclass(frozen=True)
class Change:
    """One measurement in two runs.

    Attributes:
        ratio: median after by median before.
        noise: ratios from 1 / (1 + noise) to 1 + noise may be chance.
    """

    before: Measurement
    after: Measurement
    ratio: float
    noise: float

    @property
    def verdict(self) -> Literal["same", "slower", "faster"]:
        """The word for the change; for bytes "slower" means more of them."""
        if 1 / (1 + self.noise) <= self.ratio <= 1 + self.noise:
            return "same"
        return "slower" if self.ratio > 1 else "faster"


def compare(before: Results, after: Results) -> list[Change]:
    """What both runs measured, in the order of the later one."""
    known = {each.key: each for each in before.measurements if each.samples}
    pairs = [(known[each.key], each) for each in after.measurements if each.key in known]
    return [_change(old, new) for old, new in pairs if new.samples and old.unit == new.unit]


def _change(before: Measurement, after: Measurement) -> Change:
    growth = math.inf if after.median else 1.0
    ratio = after.median / before.median if before.median else growth
    noise = max(LEAST_NOISE, _spread(before) + _spread(after))
    if before.unit == "s" and min(len(before.samples), len(after.samples)) < 3:
        noise = max(NOISE_OF_FEW, noise)
    return Change(before, after, ratio, noise)


def _spread(found: Measurement) -> float:
    """From the 20th to the 80th percentile, as a share of the median, widened for few samples."""
    if not found.median:
        return 0.0
    low, high = found.spread
    return (high - low) / found.median * (1 + 2 / len(found.samples))


def only_in_one(before: Results, after: Results) -> Iterator[tuple[Measurement, str]]:
    """Measurements that cannot be compared, and why."""
    old = {each.key: each for each in before.measurements}
    new = {each.key: each for each in after.measurements}
    for key in {**new, **old}:
        if key not in old:
            yield new[key], "only in the later run"
        elif key not in new:
            yield old[key], "only in the earlier run"
        elif old[key].samples and not new[key].samples:
            yield new[key], f"no longer measured: {new[key].withheld}"
        elif new[key].samples and not old[key].samples:
            yield new[key], f"was not measured before: {old[key].withheld}"
        elif old[key].unit != new[key].unit:
            yield new[key], f"was in {old[key].unit}, is in {new[key].unit}"


def differences(before: Results, after: Results) -> list[str]:
    """What the runs depend on besides the code, and differs.

    Ceilings differ when they are further apart than noise always is.
    """
    old, new = before.environment, after.environment
    names = dict.fromkeys([*_FIRST_OF_ALL, *new, *old])
    found = [n for n in names if n not in _OF_EVERY_RUN and old.get(n) != new.get(n)]
    for name, value in after.ceilings.items():
        earlier = before.ceilings.get(name)
        if not earlier or not value or abs(math.log(value / earlier)) > math.log(1 + LEAST_NOISE):
            found.append(ceiling_name(name))
    return found


def ceiling_name(name: str) -> str:
    """The name of a measured ceiling among what a run depends on."""
    return f"measured {name.replace('_', ' ')}"
