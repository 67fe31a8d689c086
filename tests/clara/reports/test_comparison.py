import random

import pytest

from clara.reports.comparison import LEAST_NOISE, compare, differences, only_in_one
from clara.reports.results import Measurement, Results


def run(samples, unit="s", **changes):
    names = {"suite": "s", "case": "c", "implementation": "ours", **changes}
    return Results({}, {}, [Measurement(**names, unit=unit, samples=[float(v) for v in samples])])


def verdict(before, after, unit="s"):
    (change,) = compare(run(before, unit), run(after, unit))
    (back,) = compare(run(after, unit), run(before, unit))
    opposite = {"slower": "faster", "faster": "slower", "same": "same"}
    assert back.verdict == opposite[change.verdict]
    return change.verdict


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([10, 10, 10, 10, 10], [10, 10, 10, 10, 10], "same"),
        ([10, 10, 10, 10, 10], [10.4, 10.4, 10.4, 10.4, 10.4], "same"),  # below 5 %
        ([10, 10, 10, 10, 10], [10.6, 10.6, 10.6, 10.6, 10.6], "slower"),
        ([10, 10.1, 9.9, 10, 10], [13, 13.1, 12.9, 13, 13], "slower"),
        ([10, 8, 12, 9, 11], [13, 11, 15, 12, 14], "same"),  # 30 %, but both are uneven
        ([10, 8, 12, 9, 11], [30, 27, 33, 28, 31], "slower"),
        ([10], [12], "same"),  # one sample says little
        ([10], [13], "slower"),
        ([10, 10], [12, 12], "same"),
        ([10, 10, 10], [12, 12, 12], "slower"),
        ([0, 0, 0], [0, 0, 0], "same"),
        ([0, 0, 0], [1, 1, 1], "slower"),
    ],
)
def test_verdicts_in_both_directions(before, after, expected):
    assert verdict(before, after) == expected


def test_bytes_are_the_same_in_every_run():
    assert verdict([1000], [1040], "bytes") == "same"
    assert verdict([1000], [1060], "bytes") == "slower"
    assert verdict([0], [0], "bytes") == "same"


@pytest.mark.parametrize(("count", "most"), [(3, 0.06), (5, 0.025), (9, 0.01)])
def test_noise_is_seldom_called_a_change(count, most):
    draw = random.Random(count)

    def times(cost):
        cost *= draw.lognormvariate(0, 0.025)  # this run
        return [cost * draw.lognormvariate(0, 0.05) for _ in range(count)]

    trials = 2000
    pairs = [compare(run(times(1)), run(times(1)))[0] for _ in range(trials)]
    assert sum(pair.verdict != "same" for pair in pairs) < most * trials
    slower = [compare(run(times(1)), run(times(1.3)))[0].verdict for _ in range(200)]
    assert slower.count("slower") > 170


def test_what_was_slowed_down_is_found(make):
    changes = compare(make(0), make(1, {("question", "memory"): 1.4, ("rank", "torch"): 0.7}))
    found = {
        (each.after.suite, each.after.implementation, each.verdict)
        for each in changes
        if each.verdict != "same"
    }
    assert found == {("question", "memory", "slower"), ("rank", "torch", "faster")}
    assert all(each.noise >= LEAST_NOISE for each in changes)


def test_what_only_one_run_has():
    def results(**found):
        rows = []
        for case, outcome in found.items():
            kept = {"withheld": outcome} if isinstance(outcome, str) else {"samples": outcome}
            rows.append(Measurement("s", case, "ours", **kept))
        return Results({}, {}, rows)

    before = results(both=[1.0], gone=[1.0], lost=[1.0], found="was absent", never="absent")
    after = results(both=[1.0], new=[1.0], lost="differs", found=[1.0], never="absent")
    assert {found.case: why for found, why in only_in_one(before, after)} == {
        "gone": "only in the earlier run",
        "new": "only in the later run",
        "lost": "no longer measured: differs",
        "found": "was not measured before: was absent",
    }
    assert [change.after.case for change in compare(before, after)] == ["both"]


def test_what_differs_besides_the_code():
    before = Results({"device": "A", "size": "small", "commit": "1", "torch": "2.10"})
    after = Results({"device": "B", "size": "full", "commit": "2", "torch": "2.10", "cuda": "13"})
    assert differences(before, after) == ["device", "size", "cuda"]
    assert differences(before, before) == []
    slow, fast = Results({}, {"bandwidth": 1e10}), Results({}, {"bandwidth": 1.2e10})
    assert differences(slow, fast) == differences(fast, slow) == ["measured bandwidth"]
    assert differences(slow, Results({}, {"bandwidth": 1.03e10})) == []
