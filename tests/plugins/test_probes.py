"""Probes find what coverage's own tracer finds."""

import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
from coverage import Coverage

from tests.plugins.probes import NAME, Measuring, Probes, write

# Every kind of statement, with parts that run and parts that do not.
SAMPLE = '''\
"""A docstring
of two lines."""

from __future__ import annotations

import contextlib, functools
from typing import (
    TYPE_CHECKING,
    Any,
)

if TYPE_CHECKING:
    import decimal

LARGE = [
    number
    for number in range(20)
    if number > 10
]


class Plain:
    """Only a docstring."""


class Error(Exception):
    kind: str = "error"
    if kind == "other":
        count = 1
    else:
        count = 2


@functools.lru_cache(
    maxsize=None
)
@functools.wraps(print)
def decorated(value):
    return value


@functools.cache
def never_called(value):
    """Says."""
    if value:
        return 1
    return 2


def both(value):
    if value > 1 and (
        value < 5
    ):
        result = "in"
    elif value == 7:
        result = "seven"
    else:
        result = "out"
    return result


def one_side(value):
    if value:
        value += 1
    return value


def other_side(value):
    if value:
        value += 1
    for _ in ():
        value += 2
    while value > 10:
        value -= 1
    if not value:
        pass


def loops(values):
    found = 0
    for value in values:
        if value == 2:
            continue
        for inner in range(value):
            if inner == 3:
                break
            found += 1
        else:
            found += 100
    while found > 50:
        while found % 2:
            found -= 1
        found -= 30
    else:
        found += 1
    while True:
        if found:
            return found
        found = 1


def never_ends(values):
    for value in values:
        if value:
            return value
    while 1:
        values.append(1)
        break


def raising(kind):
    try:
        if kind == "none":
            return 0
        raise kind("text")
    except (ValueError, KeyError) as error:
        text = str(error)
    except Error:
        text = "own"
    except OSError:
        text = "never"
    else:
        text = "else"
    finally:
        done = True
    try:
        done = text and done
    except:
        done = False
    return text, done


def with_blocks(values):
    with contextlib.suppress(KeyError), \\
            contextlib.suppress(ValueError):
        for value in values:
            if value == 1:
                return 1
            if value == 2:
                raise KeyError(value)
    with contextlib.suppress(KeyError):
        if values:
            del values[0]
    return 2


def unseen(kind):
    try:
        raise kind
    except ValueError:
        return 1
    except Error:
        return 2


def generator(count):
    for number in range(count):
        got = yield number
        if got:
            return


def outer(values):
    def inner(value):
        nonlocal total
        total += value
        return (
            total
        )

    total = 0
    local = lambda: [
        each for each in values
    ]
    assert (
        values
    ), "none"
    return [inner(value) for value in local() if value]


def long_call(value: Any):
    global LARGE
    return both(
        value if value
        else 1,
    )


both(2), both(9)
one_side(1)
other_side(0)
loops([1, 2, 3, 4])
loops([])
never_ends([0])
for chosen in (KeyError, Error, "none"):
    raising(chosen)
with_blocks([1]), with_blocks([2]), with_blocks([3]), with_blocks([])
with contextlib.suppress(RuntimeError):
    unseen(RuntimeError)
list(generator(2))
outer([1, 0])
long_call(3)
decorated(1) if LARGE else None
'''


def loaded(file: Path) -> SimpleNamespace:
    spec = spec_from_file_location("sample", file)
    return SimpleNamespace(loader=spec.loader, module=module_from_spec(spec))


def report(data: Path, file: Path) -> dict:
    """What coverage says of a file after its data."""
    coverage = Coverage(data_file=str(data), branch=True, config_file=str(Path("pyproject.toml")))
    coverage.load()
    result = data.with_suffix(".json")
    coverage.json_report(morfs=[str(file)], outfile=str(result))
    (found,) = json.loads(result.read_text())["files"].values()
    lists = ("executed_lines", "missing_lines", "executed_branches", "missing_branches")
    return {name: found[name] for name in (*lists, "summary")}


@pytest.mark.parametrize("calls", [True, False])
def test_lines_and_branches_are_those_of_a_tracer(tmp_path, calls):
    """Also where functions are defined and none is called."""
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE if calls else SAMPLE[: SAMPLE.index("both(2)")])
    traced = [sys.executable, "-m", "coverage", "run", "--branch", "--rcfile="]
    traced += [f"--include={file}", f"--data-file={tmp_path / 'traced'}", str(file)]
    subprocess.run(traced, check=True, env={**os.environ, "COVERAGE_CORE": "ctrace"})
    probes = Probes([tmp_path])
    sample = loaded(file)
    probes.execute(sample.loader, sample.module)
    write(probes.found(), [tmp_path], Coverage(data_file=str(tmp_path / "probed"), branch=True))
    assert report(tmp_path / "probed", file) == report(tmp_path / "traced", file)


def test_another_kind_of_branch_is_refused(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text("match 1:\n    case 1:\n        done = 1\n    case _:\n        done = 2\n")
    coverage = Coverage(data_file=str(tmp_path / "data"), branch=True)
    with pytest.raises(NotImplementedError, match=r"sample\.py:\d: coverage knows 2 ways on"):
        write({}, [tmp_path], coverage)


def test_a_file_that_was_not_imported_is_missing(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE)
    write({}, [tmp_path], Coverage(data_file=str(tmp_path / "data"), branch=True))
    found = report(tmp_path / "data", file)
    assert found["executed_lines"] == found["executed_branches"] == []
    assert found["summary"]["percent_covered"] == 0


def test_only_what_is_below_the_folders_is_measured(tmp_path):
    inside, outside = tmp_path / "in" / "sample.py", tmp_path / "sample.py"
    for file in (inside, outside):
        file.parent.mkdir(exist_ok=True)
        file.write_text("done = 1\n")
    before = SourceFileLoader.exec_module
    probes = Probes([inside.parent])
    probes.replace()
    try:
        for file in (inside, outside):
            sample = loaded(file)
            sample.loader.exec_module(sample.module)
            assert sample.module.done == 1
            assert hasattr(sample.module, NAME) == (file == inside)
    finally:
        probes.restore()
    assert SourceFileLoader.exec_module is before
    assert probes.found() == {str(inside): [1]}


def test_a_module_is_measured_by_a_link_as_well(tmp_path):
    file = tmp_path / "in" / "sample.py"
    file.parent.mkdir()
    file.write_text("done = 1\n")
    (tmp_path / "link").symlink_to(file.parent)
    probes = Probes([file.parent])
    probes.replace()
    try:
        sample = loaded(tmp_path / "link" / "sample.py")
        sample.loader.exec_module(sample.module)
    finally:
        probes.restore()
    assert probes.found() == {str(file): [1]}


def test_a_module_that_is_imported_again_keeps_what_ran(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text("import os\nif 'AGAIN' in os.environ:\n    done = 1\n")
    probes = Probes([tmp_path])
    for _ in range(2):
        sample = loaded(file)
        probes.execute(sample.loader, sample.module)
        os.environ["AGAIN"] = "1"
    del os.environ["AGAIN"]
    assert probes.found() == {str(file): [1, 2, -2, 3]}


def test_what_is_imported_already_is_refused(tmp_path):
    import clara

    assert clara
    with pytest.raises(pytest.UsageError, match="clara was imported before"):
        Measuring()
