"""Coverage loses nothing but time where its tracer is kept out."""

import sys

import pytest

from tests.plugins.untraced import UNTRACED, place, untraced


@pytest.fixture
def traced(monkeypatch):
    """Names of the functions that a tracer sees called while the test runs."""
    names = []

    def tracer(frame, event, argument):
        names.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(tracer)
    yield names
    sys.settrace(before)


def measured():
    return sys.gettrace()


def failing():
    raise KeyError("as it was")


def test_the_tracer_is_away_for_a_call_and_back_after_it(traced):
    assert untraced(measured)() is None
    assert "measured" not in traced
    assert measured() is not None
    assert "measured" in traced


def test_the_tracer_is_back_after_an_error(traced):
    with pytest.raises(KeyError, match="as it was"):
        untraced(failing)()
    assert measured() is not None
    assert "failing" not in traced


@pytest.mark.parametrize(
    ("module", "path"), [(module, path) for module, paths in UNTRACED.items() for path in paths]
)
def test_what_is_replaced_is_there(module, path):
    owner, name = place(module, path)
    assert name in vars(owner), f"{module} has no {path} any more: take it out of UNTRACED"
