"""`-m slow` imports the test files that have slow tests, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n")
    (tree / "conftest.py").write_text('pytest_plugins = ["tests.plugins.slow_files"]\n')
    slow = "import pytest\n\n\n@pytest.mark.slow\ndef test_it():\n    pass\n"
    (tree / "test_marked.py").write_text(slow)
    (tree / "deep").mkdir()
    (tree / "deep" / "test_below.py").write_text(slow)
    (tree / "test_plain.py").write_text("print('imported')\n\n\ndef test_it():\n    pass\n")
    return tree


@pytest.mark.parametrize(
    ("arguments", "collected", "imported"),
    [
        (["-m", "slow"], ["deep/test_below.py", "test_marked.py"], False),
        (["-m", "slow", "test_plain.py::test_it", "test_marked.py"], ["test_marked.py"], True),
        (["-m", "not slow"], ["test_plain.py"], True),
        ([], ["deep/test_below.py", "test_marked.py", "test_plain.py"], True),
    ],
)
def test_files(tree, arguments, collected, imported):
    done = collect(tree, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = sorted(line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line)
    assert found == collected
    assert ("imported" in done.stdout) is imported


def test_a_slow_test_that_would_not_be_found_is_refused(tree, tmp_path):
    for name in ("pytest.ini", "conftest.py", "test_plain.py"):
        (tmp_path / name).write_text((tree / name).read_text())
    hidden = "import pytest\n\n\n@getattr(pytest.mark, 'slow')\ndef test_it():\n    pass\n"
    (tmp_path / "test_hidden.py").write_text(hidden)
    done = collect(tmp_path, "-m", "not slow")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_hidden.py: has slow tests, but no 'mark.slow'" in done.stderr


def collect(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-s", *arguments],
        cwd=tree,
        env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
