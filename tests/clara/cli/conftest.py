from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer import testing
from typer.testing import CliRunner

from clara import Clara, ClaraConfig
from clara.cli import index_build
from clara.cli.app import app
from clara.model import shipped

REFERENCE = Path(__file__).resolve().parents[3] / "tests" / "data" / "reference"
COMMAND = [sys.executable, "-c", "from clara.cli import main; main()"]


@pytest.fixture(scope="session", autouse=True)
def one_tree_of_commands():
    """typer makes the tree for each call, which takes as long as many of the calls."""
    with pytest.MonkeyPatch.context() as patched:
        cached = functools.cache(testing._get_command)
        patched.setattr(testing, "_get_command", cached)
        yield


@pytest.fixture(scope="session")
def backbone() -> str:
    """A Llama of three layers and 48 dimensions."""
    return str(REFERENCE / "base")


@pytest.fixture(scope="session")
def reference_checkpoint() -> str:
    return str(REFERENCE / "checkpoint")


@pytest.fixture(scope="session")
def model(backbone, tmp_path_factory) -> str:
    """A model folder with 4 memory tokens for up to 64 tokens."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = ClaraConfig(document_length=64, compression_rate=16, dtype="float32")
    Clara.from_backbone(backbone, config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def other_model(backbone, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "other"
    config = ClaraConfig(document_length=64, compression_rate=16, dtype="float32")
    Clara.from_backbone(backbone, config, seed=1).save_pretrained(folder)
    return str(folder)


def record(number: int) -> dict[str, Any]:
    return {
        "id": f"d{number}",
        "contents": f"Country {number} has {number * 7} rivers and a coast of {number} km.",
        "title": f"Country {number}",
    }


@pytest.fixture(scope="session")
def write_corpus(tmp_path_factory) -> Callable[..., str]:
    """A corpus file of the records given, or of `count` plain ones."""

    def write(records: Any = None, *, count: int = 0, lines: list[str] | None = None) -> str:
        file = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
        records = [record(n) for n in range(count)] if records is None else records
        shown = [json.dumps(each) for each in records] if lines is None else lines
        file.write_text("".join(line + "\n" for line in shown))
        return str(file)

    return write


@pytest.fixture(scope="session")
def index(model, write_corpus, tmp_path_factory) -> str:
    """An index of six documents."""
    folder = str(tmp_path_factory.mktemp("index") / "six")
    arguments = ["compress", "--model", model, "--corpus", write_corpus(count=6)]
    result = CliRunner().invoke(app, [*arguments, "--output", folder])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def clara(monkeypatch) -> Callable[..., Any]:
    """Run a command in this process; it must succeed, without a remark, unless told otherwise."""
    monkeypatch.setattr(index_build, "LINES_EVERY", 3600.0)  # a busy machine may take a minute

    def run(*arguments: str, code: int = 0, quiet: bool = True) -> Any:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        if code == 0 and quiet:
            assert result.stderr == ""
        return result

    return run


@pytest.fixture
def refused(clara) -> Callable[..., str]:
    """The one line that a command prints when it refuses its input."""

    def run(*arguments: str, code: int = 1) -> str:
        result = clara(*arguments, code=code)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture
def without_shipped_models(monkeypatch, tmp_path) -> None:
    """As if no trained weights came with the project."""
    monkeypatch.setattr(shipped, "folders", lambda: [tmp_path / "no models"])


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(request, environment) -> list[str]:
    """`clara`. Slow tests share what takes seconds to import; others hardly import anything."""
    slow = request.node.get_closest_marker("slow") is not None
    return [request.getfixturevalue("warm")(environment).clara] if slow else COMMAND


@pytest.fixture
def process(command, environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a process of its own."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"env": environment, "stdin": subprocess.DEVNULL, **options}
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=300, **options
        )

    return run


def hear_interrupts() -> None:
    """Undo what a shell without job control does to background jobs: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(command, environment) -> Callable[..., subprocess.Popen[str]]:
    """Start a command in a process of its own."""

    def run(*arguments: str, command: list[str] = command, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [*command, *arguments],
            env=environment,
            text=True,
            preexec_fn=hear_interrupts,
            **options,
        )

    return run


STUCK = """
import sys
import time

from clara import Clara
from clara.cli import main
from clara.sync import build

build.PERIOD = 0.0
left = int(sys.argv.pop(1))
compress = Clara.compress


def stuck(self, documents, **options):
    global left
    left -= len(documents)
    if left < 0:
        time.sleep(600)
    return compress(self, documents, **options)


Clara.compress = stuck
main()
"""


@pytest.fixture
def start_stuck(start, warm, environment) -> Callable[..., subprocess.Popen[str]]:
    """Start a command that waits before it compresses more than so many documents.

    A test that kills it half-way does so whatever the speed of the machine. Every batch is stored
    at once.
    """

    def run(documents: int, *arguments: str) -> subprocess.Popen[str]:
        command = [warm(environment).python, "-c", STUCK, str(documents)]
        return start(*arguments, command=command)

    return run
