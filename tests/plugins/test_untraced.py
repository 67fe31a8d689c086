"""Coverage loses nothing but time where its tracer is kept out."""

import sys
from types import SimpleNamespace

import pytest

from tests.plugins.untraced import CASES, TESTS, UNTRACED, WholeTests, measured, place, untraced


@pytest.fixture
def traced(monkeypatch):
    """Names of the functions that a tracer sees called while the test runs."""
    names = []

    def note(frame, event, argument):
        names.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(note)
    yield names
    sys.settrace(before)


def tracer():
    return sys.gettrace()


def failing():
    raise KeyError("as it was")


def test_the_tracer_is_away_for_a_call_and_back_after_it(traced):
    assert untraced(tracer)() is None
    assert "tracer" not in traced
    assert tracer() is not None
    assert "tracer" in traced


def test_the_tracer_is_back_after_an_error(traced):
    with pytest.raises(KeyError, match="as it was"):
        untraced(failing)()
    assert tracer() is not None
    assert "failing" not in traced


@pytest.mark.parametrize(
    ("module", "path"), [(module, path) for module, paths in UNTRACED.items() for path in paths]
)
def test_what_is_replaced_is_there(module, path):
    owner, name = place(module, path)
    assert name in vars(owner), f"{module} has no {path} any more: take it out of UNTRACED"


FILE = TESTS / "clara" / "test_some.py"


@pytest.mark.parametrize("count", [1, 2, CASES, CASES + 1, 300])
def test_cases_at_equal_distances_are_measured(count):
    found = sorted(measured((FILE, f"TestOf::test_many[{n}::x[]") for n in range(count)))
    assert len(found) == min(count, CASES)
    assert found[0] == 0
    assert found[-1] == count - 1
    gaps = [after - before for before, after in zip(found, found[1:])]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_tests_of_other_names_and_files_count_apart():
    other = FILE.with_name("test_other.py")
    tests = [(file, f"test_{n}") for file in (FILE, other) for n in range(CASES + 1)]
    assert measured(tests) == set(range(len(tests)))


def test_tests_of_what_is_not_measured_are_not_traced():
    tests = [(TESTS / "bench" / "test_a.py", "test_b"), (TESTS / "test_a.py", "test_b")]
    assert measured(tests) == {1}


def session_of(*names):
    items = [SimpleNamespace(path=FILE, nodeid=f"tests/clara/test_some.py::{n}") for n in names]
    return SimpleNamespace(items=items)


def test_the_tracer_is_away_for_a_whole_test_and_back_after_it(traced):
    plugin = WholeTests()
    session = session_of(*(f"test_many[{n}]" for n in range(CASES + 1)))
    plugin.pytest_collection_finish(session)
    seen = []
    for item in session.items:
        run = plugin.pytest_runtest_protocol(item)
        next(run)
        seen.append(tracer() is not None)
        with pytest.raises(StopIteration):
            run.send(True)
        assert tracer() is not None
    assert seen.count(False) == 1
    assert seen[0]
    assert seen[-1]
