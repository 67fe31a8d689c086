"""A promise of operators is as good as the worst of the cases that it is made for."""

import pytest
import torch

from bench.operators.case import Target
from bench.operators.promises import Figure, figures, judged
from bench.operators.suite import Timed

from .toys import toy

CEILINGS = {"bandwidth": 400.0, "matrix_rate": 1000.0}


def figure(measured, name="a", **bounds):
    return Figure(toy(torch.exp, {}, name=name), Target("fast", "ratio", **bounds), measured)


def outcome(*found):
    return [(promise.measured, worst, promise.outcome) for promise, worst in judged(found)]


def test_a_promise_is_as_good_as_its_worst_case():
    found = outcome(figure(3.0, at_least=2), figure(2.5, "b", at_least=2))
    assert found == [(2.5, "toy, b", "kept")]
    found = outcome(figure(3.0, at_least=2), figure(1.9, "b", at_least=2))
    assert found == [(1.9, "toy, b", "missed")]
    found = outcome(figure(0.5, at_most=1), figure(0.9, "b", at_most=1))
    assert found == [(0.9, "toy, b", "kept")]
    assert outcome(figure(1.1, at_most=1)) == [(1.1, "toy, a", "missed")]


def test_what_has_no_number_is_not_kept():
    assert outcome(figure(3.0, at_least=2), figure(None, "b", at_least=2)) == []
    assert outcome(figure(None, at_most=1)) == []
    found = outcome(figure(None, at_least=2), figure(1.0, "b", at_least=2))
    assert found == [(1.0, "toy, b", "missed")]


def test_promises_are_of_operators():
    ((promise, _),) = judged([figure(3.0, at_least=2)])
    assert str(promise) == "toy, fast: 3 (promised 2)"


@pytest.mark.parametrize(
    ("quantity", "of", "measured"),
    [
        ("bandwidth", "", 800 / 4 / 400),
        ("matrix rate", "", 500 / 4 / 1000),
        ("ratio", "slow", 0.5),
        ("ratio", "absent", None),
        ("beyond", "slow", 1.0),  # 2 s more, 800 bytes at 400 B/s
        ("beyond", "absent", None),
        ("extra memory", "", 0.01),
    ],
)
def test_what_is_measured(quantity, of, measured):
    target = Target("", quantity, of, at_least=1.0)
    case = toy(torch.exp, {}, candidate_bytes=1000, flops=500, targets=(target,))
    timed = Timed({"ours": [4.0, 4.0], "slow": [2.0, 2.0]}, {}, extra_bytes={"ours": 10})
    assert [each.measured for each in figures(case, timed, CEILINGS)] == [measured]
    assert [each.measured for each in figures(case, None, CEILINGS)] == [None]
