"""The contract on imports in pyproject.toml fails where somebody breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"clara": "clara", "clara_kernels": "kernels/clara_kernels"}


def lint_imports(tree: Path) -> subprocess.CompletedProcess:
    """Check the packages in `tree`, which are read and not imported."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tree / "kernels"), "COLUMNS": "200"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in PACKAGES.values():
        ignored = shutil.ignore_patterns("__pycache__", "_C.*")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"clara/text/extra.py": "import clara.cli"}, "clara.text.extra -> clara.cli (l.1)"),
        (
            {
                "clara/text/extra.py": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from clara.model import clara"
            },
            "clara.text.extra -> clara.model.clara (l.3)",
        ),
        (
            {"clara/evaluation/extra.py": "def later():\n    import clara.training.run"},
            "clara.evaluation.extra -> clara.training.run (l.2)",
        ),
        (
            {"clara/index/extra.py": "import clara.reports.page"},
            "clara.index.extra -> clara.reports.page (l.1)",
        ),
        (
            {"kernels/clara_kernels/extra.py": "import clara.config"},
            "clara_kernels.extra -> clara.config (l.1)",
        ),
        (
            {"clara/text/one.py": "from . import two", "clara/text/two.py": "from . import one"},
            "No cycles are allowed in clara.text",
        ),
    ],
)
def test_an_import_that_the_contract_forbids_is_named(tree, files, message):
    for file, text in files.items():
        (tree / file).write_text(text)
    result = lint_imports(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert message in result.stdout


def test_a_new_package_needs_a_layer(tree):
    (tree / "clara" / "extras.py").write_text("")
    result = lint_imports(tree)
    assert result.returncode == 1
    assert "clara.extras" in result.stdout


@pytest.mark.parametrize("folder", PACKAGES.values())
def test_every_folder_is_a_package(folder):
    """import-linter does not see the modules of a folder that is none."""
    for module in (ROOT / folder).rglob("*.py"):
        assert (module.parent / "__init__.py").is_file(), module
