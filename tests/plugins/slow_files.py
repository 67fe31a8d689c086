"""A pytest plugin for `-m slow`: test files without a slow test are not imported.

To import all and to collect their ten thousand tests takes each worker ten seconds and more, for
tests that `-m slow` leaves out. A file has slow tests only if it has "mark.slow" in it: a run that
imports all refuses slow tests in other files, which nobody would run. Files that the command names
are imported in any case.
"""

from __future__ import annotations

from pathlib import Path

import pytest

MARK = "mark.slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whether a file is left out; None leaves that to others, as pytest has it."""
    if config.option.markexpr != "slow" or not collection_path.match("test_*.py"):
        return None
    named = (config.invocation_params.dir / each.partition("::")[0] for each in config.args)
    if collection_path in named or marks(collection_path):
        return None
    return True


@pytest.hookimpl(tryfirst=True)  # before some are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse slow tests that `-m slow` would not find."""
    for file in sorted({item.path for item in items if item.get_closest_marker("slow")}):
        if not marks(file):
            raise pytest.UsageError(
                f"{file}: has slow tests, but no {MARK!r} that -m slow looks for"
            )


def marks(file: Path) -> bool:
    return MARK in file.read_text(encoding="utf-8")
