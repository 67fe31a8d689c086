"""How far a mean over questions may be trusted, and whether two systems differ.

Everything is drawn anew from a seed, so the same values give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clara.errors import ClaraError, reason

RESAMPLES = 10_000
CONFIDENCE = 0.95

_COUNTING = 32  # values for each different one from which counting beats drawing each value
_ENUMERATED = 16  # differences whose signs are all gone through
_AT_ONCE = 1 << 20  # numbers drawn at a time, 8 MiB

Values = NDArray[np.float64]
Counts = NDArray[np.int64]


class StatisticsError(ClaraError, ValueError):
    """There is nothing to compute from: no values, one that is no number, or unequal lists."""


@dataclass(frozen=True)
class Interval:
    """A mean or median of the values, and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Whether the first of two systems differs from the second on the same questions.

    Attributes:
        difference: of the means, the first less the second.
        low: lower end of the confidence interval of the difference.
        high: its upper end.
        p: chance of a difference at least as far from 0, in either direction, if it were left to
            a coin which system gave which of the two scores of a question.
    """

    difference: float
    low: float
    high: float
    p: float


def mean_interval(
    values: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean, with its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    Only the values that were measured can be drawn. Where they are all the same, the interval has
    no width, however few they are: no error in 10 questions does not mean that there is none.

    Args:
        values: one for each question.
        confidence: share of such intervals that hold the true mean, between 0 and 1.
        resamples: how often as many values are drawn, with repetition.

    Raises:
        StatisticsError: there are no values, or one is infinite or not a number; or `confidence`
            or `resamples` is out of range.
    """
    given = _checked(values, "values", confidence, resamples)
    generator = np.random.default_rng(seed)
    different, counts = np.unique(given, return_counts=True)
    if len(different) * _COUNTING <= len(given):
        means = _means_by_counts(different, counts, resamples, generator)
    else:
        means = _resampled_means(given, resamples, generator)
    # Sums round: the mean of equal values would not always be their value.
    low, high = _percentiles(means.clip(different[0], different[-1]), confidence)
    mean = math.fsum(given) / len(given)
    return Interval(float(np.clip(mean, different[0], different[-1])), low, high)


def median_interval(
    values: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The median, with its percentile bootstrap interval; see `mean_interval`.

    For times, whose mean says more about a machine's pauses than about a system.
    """
    given = _checked(values, "values", confidence, resamples)
    medians = _resampled_medians(np.sort(given), resamples, np.random.default_rng(seed))
    low, high = _percentiles(medians, confidence)
    return Interval(float(np.median(given)), low, high)


def paired_test(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Compare the scores of two systems on the same questions.

    The interval is the bootstrap's, see `mean_interval`. The test is Fisher's randomisation test,
    two-sided: the two scores of each question change places by a coin. All ways are counted where
    there are at most `resamples`; else as many are drawn, and the observed one is counted with
    them (Phipson and Smyth, 2010, arXiv 1603.05766), so that p is never 0.

    Args:
        first: scores of one system, one for each question.
        second: those of the other, in the same order of questions.

    Raises:
        StatisticsError: as `mean_interval`; also for lists of different lengths.
    """
    one = _checked(first, "first", confidence, resamples)
    other = _checked(second, "second", confidence, resamples)
    if one.shape != other.shape:
        raise StatisticsError(
            f"first and second must be scores of the same questions, got {len(one)} and "
            f"{len(other)}"
        )
    differences = one - other
    interval = mean_interval(
        differences.tolist(), confidence=confidence, resamples=resamples, seed=seed
    )
    p = _randomisation(differences, resamples, np.random.default_rng(seed))
    return PairedTest(interval.estimate, interval.low, interval.high, p)


def _checked(values: Sequence[float], name: str, confidence: float, resamples: int) -> Values:
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must be between 0 and 1, got {confidence!r}")
    if resamples < 1:
        raise StatisticsError(f"resamples must be at least 1, got {resamples!r}")
    try:
        given = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StatisticsError(f"{name} must be a list of numbers: {reason(error)}") from error
    if given.ndim != 1 or not given.size:
        raise StatisticsError(f"{name} must be a list of at least one number")
    if not np.isfinite(given).all():
        row = int(np.flatnonzero(~np.isfinite(given))[0])
        raise StatisticsError(f"{name}[{row}] must be a finite number, got {given[row]}")
    return given


def _means_by_counts(
    different: Values, counts: Counts, resamples: int, generator: np.random.Generator
) -> Values:
    """Means of resamples of values that occur so often.

    How often each different value comes up in a resample has a multinomial distribution. Scores
    are often 0 or 1, so that two numbers are drawn instead of one for each question.
    """
    total, means = counts.sum(), []
    rows = max(1, _AT_ONCE // len(counts))
    for begin in range(0, resamples, rows):
        size = min(rows, resamples - begin)
        means.append(generator.multinomial(total, counts / total, size=size) @ different / total)
    return np.concatenate(means)


def _resampled_means(given: Values, resamples: int, generator: np.random.Generator) -> Values:
    means = []
    rows = max(1, _AT_ONCE // len(given))
    for begin in range(0, resamples, rows):
        size = (min(rows, resamples - begin), len(given))
        means.append(given[generator.integers(len(given), size=size)].mean(axis=1))
    return np.concatenate(means)


def _resampled_medians(ordered: Values, resamples: int, generator: np.random.Generator) -> Values:
    """Medians of resamples of values in ascending order, by two numbers for each resample.

    A resample takes the values at n·u, rounded down, for n uniform numbers u. The k-th smallest of
    them has a beta distribution, and the next one lies that of the n − k remaining ones above it.
    """
    count = len(ordered)
    rank = (count + 1) // 2
    below = generator.beta(rank, count - rank + 1, size=resamples)
    above = below
    if count % 2 == 0:
        above = below + (1 - below) * generator.beta(1, count - rank, size=resamples)
    last = count - 1  # a number may round up to 1
    lower = ordered[np.minimum((below * count).astype(np.int64), last)]
    upper = ordered[np.minimum((above * count).astype(np.int64), last)]
    return np.asarray((lower + upper) / 2)


def _percentiles(values: Values, confidence: float) -> tuple[float, float]:
    outside = (1 - confidence) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)


def _randomisation(differences: Values, resamples: int, generator: np.random.Generator) -> float:
    """The p-value of a mean of differences if each sign were a coin's."""
    sizes = np.abs(differences[differences != 0])
    # Sums of the same numbers in another order differ in their last bits.
    observed = abs(differences.sum()) - 1e-9 * sizes.sum()
    if len(sizes) <= _ENUMERATED and 2 ** len(sizes) <= resamples:
        patterns = np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ sizes) >= observed))
    different, counts = np.unique(sizes, return_counts=True)
    counting = len(different) * _COUNTING <= len(sizes)
    as_far = 0
    rows = max(1, _AT_ONCE // len(different if counting else sizes))
    for begin in range(0, resamples, rows):
        drawn = min(rows, resamples - begin)
        if counting:  # of equal differences only the number with a plus matters
            plus = generator.binomial(counts, 0.5, size=(drawn, len(counts))) @ different
        else:
            signs = generator.integers(2, size=(drawn, len(sizes)), dtype=np.uint8)
            plus = signs.astype(np.float64) @ sizes
        as_far += int(np.sum(np.abs(2 * plus - sizes.sum()) >= observed))
    return (1 + as_far) / (1 + resamples)
