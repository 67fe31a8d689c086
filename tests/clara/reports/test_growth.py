import pytest

from clara.reports.growth import curves, local_slopes
from clara.reports.results import Measurement, Results


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found_between_all_its_points(exponent):
    sizes = [3, 20, 70, 1000]
    slopes = local_slopes(sizes, [0.02 * size**exponent for size in sizes])
    assert [slope.sizes for slope in slopes] == [(3, 20), (20, 70), (70, 1000)]
    assert [slope.exponent for slope in slopes] == pytest.approx([exponent] * 3, abs=1e-12)


def test_a_bend_is_seen_where_it_is():
    """A fixed cost, then linear, then quadratic: no single law fits it."""
    slopes = local_slopes([1, 10, 100, 1000], [2.0, 2.0, 20.0, 2000.0])
    assert [slope.exponent for slope in slopes] == pytest.approx([0, 1, 2])
    assert slopes[1].costs == (2.0, 20.0)


def test_sizes_that_are_nearly_equal_say_nothing():
    assert local_slopes([5], [1]) == []
    assert local_slopes([5, 5], [1, 2]) == []
    assert local_slopes([1e17, 1e17 + 16], [1e-30, 1e30]) == []
    (slope,) = local_slopes([1, 2000, 2001], [1.0, 4.0, 400.0])
    assert slope.sizes == (1, 2000)


@pytest.mark.parametrize(
    ("sizes", "costs", "reason"),
    [
        ([1, 2], [0, 1], "positive"),
        ([-1, 2], [1, 1], "positive"),
        ([2, 1], [1, 1], "ascending"),
        ([1, 2], [1], "shorter|argument"),
    ],
)
def test_what_has_no_slopes(sizes, costs, reason):
    with pytest.raises(ValueError, match=reason):
        local_slopes(sizes, costs)


def test_the_steepest_slope_stays_finite():
    (slope,) = local_slopes([1e29, 1.02e29], [1e-30, 1e30])
    assert slope.exponent == pytest.approx(6977, rel=1e-3)


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
    exponents = [slope.exponent for slope in found["search, int8"].slopes]
    assert exponents == pytest.approx([1, 1, 1], abs=0.1)
    bent = found["text prompt"].slopes
    assert bent[0].exponent + 0.05 < bent[-1].exponent
    assert found["compress"].sizes == [32, 64, 128, 256]


def test_what_is_no_curve_is_left_out():
    def point(size, cost=1.0, **more):
        return Measurement("growth", "c", "ours", {"size": size, **more}, samples=[cost])

    assert curves(Results({}, {}, [point(1), point("large"), point(-5), point(7, 0.0)])) == []
    no_size = Measurement("growth", "c", "ours", {}, samples=[1.0])
    assert curves(Results({}, {}, [no_size, point(1), point(2, of="x")])) == []
    (curve,) = curves(Results({}, {}, [point(2000, 4.0), point(1, 1.0), point(2001, 4.0)]))
    assert [slope.sizes for slope in curve.slopes] == [(1, 2000)]
    assert curve.sizes == [1, 2000, 2001]
