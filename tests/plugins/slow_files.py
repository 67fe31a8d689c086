"""A pytest plugin for `-m slow`: test files without a slow test are not imported.

To import all and to collect their ten thousand tests takes each worker ten seconds and more, for
tests that `-m slow` leaves out. A file has slow tests only if it has "mark.slow" in it. Files
that the command names are imported in any case.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whether a file is left out; None leaves that to others, as pytest has it."""
    if config.option.markexpr != "slow" or not collection_path.match("test_*.py"):
        return None
    named = (config.invocation_params.dir / each.partition("::")[0] for each in config.args)
    if collection_path in named or "mark.slow" in collection_path.read_text(encoding="utf-8"):
        return None
    return True
