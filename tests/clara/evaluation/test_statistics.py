import numpy as np
import pytest
from scipy import stats

from clara.evaluation import statistics
from clara.evaluation.statistics import (
    Interval,
    StatisticsError,
    mean_interval,
    median_interval,
    paired_test,
)


def normal_values(count: int, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).normal(0.4, 0.2, count).tolist()


def test_interval_of_zeros_and_ones_is_the_binomial_distributions():
    """A bootstrap sample of 60 ones among 200 has as many ones as a binomial distribution."""
    interval = mean_interval([1.0] * 60 + [0.0] * 140, resamples=100_000)
    assert interval.estimate == 0.3
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.3) / 200
    assert interval.low == pytest.approx(low, abs=0.5 / 200)
    assert interval.high == pytest.approx(high, abs=0.5 / 200)


def test_interval_of_the_mean_is_scipys():
    values = normal_values(150)
    ours = mean_interval(values, confidence=0.9)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.estimate == pytest.approx(np.mean(values))
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


@pytest.mark.parametrize("count", [2, 3, 40, 41])
def test_interval_of_the_median_is_scipys(count):
    values = [round(value, 1) for value in normal_values(count)]
    ours = median_interval(values)
    theirs = stats.bootstrap(
        (values,), np.median, n_resamples=10_000, method="percentile", rng=2
    ).confidence_interval
    assert ours == Interval(float(np.median(values)), theirs.low, theirs.high)


def test_coverage_of_the_interval():
    """Of 300 intervals at 90 %, about 270 hold the true mean."""
    held = 0
    for seed in range(300):
        interval = mean_interval(normal_values(80, seed), confidence=0.9, resamples=400)
        held += interval.low <= 0.4 <= interval.high
    assert 253 <= held <= 285


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
def test_equal_values_leave_no_doubt(interval):
    assert interval([0.1] * 7) == Interval(0.1, 0.1, 0.1)
    assert interval([5]) == Interval(5.0, 5.0, 5.0)


def test_same_figures_for_the_same_seed():
    values = normal_values(30)
    other = [value + 0.01 for value in normal_values(30, seed=2)]
    first = (mean_interval(values), median_interval(values), paired_test(values, other))
    assert first == (mean_interval(values), median_interval(values), paired_test(values, other))
    assert mean_interval(values, seed=1) != first[0]


def test_large_lists_are_drawn_in_parts(monkeypatch):
    values, ones = normal_values(50), [1.0] * 80 + [0.0] * 120
    whole = (mean_interval(values), mean_interval(ones))
    chance = paired_test(values, normal_values(50, seed=2)).p
    monkeypatch.setattr(statistics, "_AT_ONCE", 7777)
    parts = (mean_interval(values), mean_interval(ones))
    for one, other in zip(whole, parts):
        assert one.estimate == other.estimate
        assert one.low == pytest.approx(other.low, abs=0.006)
        assert one.high == pytest.approx(other.high, abs=0.006)
    assert paired_test(values, normal_values(50, seed=2)).p == pytest.approx(chance, abs=0.02)


def test_few_differences_are_tested_exactly():
    # All 6 signs are the same: 2 of the 64 patterns are as far from zero.
    assert paired_test([1.0] * 6 + [0.0] * 4, [0.0] * 10).p == 2 / 64
    # Of the sums of ±1 ±2 ±3, four are at least as far as 1 + 2 - 3 = 0: all eight.
    assert paired_test([1.0, 2.0, 0.0], [0.0, 0.0, 3.0]).p == 1.0
    # 3 + 2 - 1 = 4: ±6 and ±4 of the eight sums.
    assert paired_test([3.0, 2.0, 0.0], [0.0, 0.0, 1.0]).p == 4 / 8


def test_few_differences_as_scipy_does():
    first, second = normal_values(10), normal_values(10, seed=2)
    theirs = stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples", vectorized=False
    )
    assert paired_test(first, second).p == pytest.approx(theirs.pvalue)


def test_many_equal_differences_are_a_sign_test():
    """One system alone is right on 40 questions, the other alone on 22, both agree on 138."""
    first = [1.0] * 40 + [0.0] * 22 + [1.0] * 138
    second = [0.0] * 40 + [1.0] * 22 + [1.0] * 138
    test = paired_test(first, second)
    assert test.difference == pytest.approx(18 / 200)
    assert test.p == pytest.approx(stats.binomtest(40, 62).pvalue, abs=0.005)
    spread = np.sqrt(62 / 200 - 0.09**2) / np.sqrt(200)
    assert test.low == pytest.approx(0.09 - 1.96 * spread, abs=0.006)
    assert test.high == pytest.approx(0.09 + 1.96 * spread, abs=0.006)
    swapped = paired_test(second, first)
    assert swapped.difference == -test.difference
    assert swapped.p == test.p


def test_many_different_differences_as_scipy_does():
    first, second = normal_values(120), [value + 0.03 for value in normal_values(120, seed=2)]
    theirs = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=3,
    )
    assert 0.02 < theirs.pvalue < 0.98
    assert paired_test(first, second).p == pytest.approx(theirs.pvalue, abs=0.015)


def test_equal_systems_do_not_differ():
    test = paired_test([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (test.difference, test.low, test.high, test.p) == (0.0, 0.0, 0.0, 1.0)


def test_chance_is_never_zero():
    assert paired_test([1.0] * 500, [0.0] * 500, resamples=999).p == 1 / 1000


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "values must be a list of at least one number"),
        ([[1.0]], {}, "values must be a list of at least one number"),
        (["one"], {}, "values must be a list of numbers: could not convert"),
        ([1.0, float("nan")], {}, r"values\[1\] must be a finite number, got nan"),
        ([1.0], {"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ([1.0], {"resamples": 0}, "resamples must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_computed(values, options, message):
    with pytest.raises(StatisticsError, match=message):
        mean_interval(values, **options)


def test_lists_of_other_questions_are_not_compared():
    with pytest.raises(StatisticsError, match="the same questions, got 2 and 1"):
        paired_test([1.0, 0.0], [1.0])
