import pytest

from clara.benchmarks.growth import curves, fit
from clara.benchmarks.results import Measurement, Results


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_power_law_is_found(exponent):
    sizes = [3, 20, 70, 1000]
    law = fit(sizes, [0.02 * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-12)
    assert law.spread == pytest.approx(1)
    assert law.at(50) == pytest.approx(0.02 * 50**exponent)


def test_points_lie_off_the_law():
    law = fit([1, 10, 100], [1.0, 10.0 * 2, 100.0])
    assert law.exponent == pytest.approx(1)
    assert law.spread == pytest.approx(2 ** (2 / 3))


@pytest.mark.parametrize(
    ("sizes", "costs", "reason"),
    [
        ([5], [1], "two different sizes"),
        ([5, 5], [1, 2], "two different sizes"),
        ([1e17, 1e17 + 16], [1e-30, 1e30], "two different sizes"),
        ([1, 2], [0, 1], "positive"),
        ([-1, 2], [1, 1], "positive"),
    ],
)
def test_what_cannot_be_fitted(sizes, costs, reason):
    with pytest.raises(ValueError, match=reason):
        fit(sizes, costs)


def test_the_steepest_law_stays_finite():
    law = fit([1e29, 1.02e29], [1e-30, 1e30])
    assert law.at(1e29) == pytest.approx(1e-30, rel=1e-3)
    assert law.at(1.02e29) == pytest.approx(1e30, rel=1e-3)


def test_curves_of_results(make):
    found = {curve.name: curve for curve in curves(make())}
    assert list(found) == [
        "search, float32",
        "search, int8",
        "compress",
        "text prompt",
        "search queries",
        "rank candidates",
    ]
    assert found["search, int8"].law.exponent == pytest.approx(1, abs=0.05)
    assert found["text prompt"].end.exponent > found["text prompt"].law.exponent
    assert found["compress"].sizes == [32, 64, 128, 256]


def test_what_is_no_curve_is_left_out():
    def point(size, cost=1.0, **more):
        return Measurement("growth", "c", "ours", {"size": size, **more}, samples=[cost])

    assert curves(Results({}, {}, [point(1), point("large"), point(-5), point(7, 0.0)])) == []
    no_size = Measurement("growth", "c", "ours", {}, samples=[1.0])
    assert curves(Results({}, {}, [no_size, point(1), point(2, of="x")])) == []
    (curve,) = curves(Results({}, {}, [point(2000, 4.0), point(1, 1.0), point(2001, 4.0)]))
    assert curve.end is None
    assert curve.sizes == [1, 2000, 2001]
