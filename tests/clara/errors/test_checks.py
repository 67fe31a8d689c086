import json

import numpy as np
import pytest
import torch

from clara.errors.checks import as_integer, as_number, is_integer, is_number, surrogate_flaw


@pytest.mark.parametrize("value", [2, np.int64(2), np.int32(2), np.uint8(2)])
def test_integers_become_plain_ones(value):
    assert is_integer(value)
    made = as_integer(value, "k", least=1)
    assert type(made) is int
    assert json.dumps(made) == "2"


@pytest.mark.parametrize(
    "value", [True, np.True_, 2.0, np.float32(2), "2", None, torch.tensor(2), [2]]
)
def test_what_is_no_integer(value):
    assert not is_integer(value)
    with pytest.raises(TypeError, match="k must be an integer, got"):
        as_integer(value, "k")


def test_the_least_integer():
    assert as_integer(-3, "k") == -3
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        as_integer(np.int64(0), "k", least=1)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_numbers_become_plain_ones(value):
    assert is_number(value)
    made = as_number(value, "x")
    assert type(made) is float
    assert made == 0.5
    assert type(as_number(np.int64(3), "x")) is float


def test_what_is_no_finite_number():
    for value in (True, np.True_, "0.5", None, torch.tensor(0.5), 1j):
        assert not is_number(value)
        with pytest.raises(TypeError, match="x must be a number, got"):
            as_number(value, "x")
    for value in (float("nan"), np.float32("inf")):
        with pytest.raises(ValueError, match="x must be a finite number, got"):
            as_number(value, "x")


@pytest.mark.parametrize("text", ["", "abc", "ü\u20ac", "\U0001f600", "\x00\ufffd"])
def test_texts_that_utf8_holds(text):
    assert surrogate_flaw(text) is None


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [("\ud83d", "d83d", 0), ("ab\udc00c", "dc00", 2), ("\U0001f600\udfff\ud800", "dfff", 1)],
)
def test_half_a_surrogate_pair(text, code, place):
    assert surrogate_flaw(text) == rf"holds half a surrogate pair, \u{code}, at character {place}"
