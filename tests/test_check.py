"""What `make check` takes for changed, and the tests that it runs for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = spec_from_file_location("check", ROOT / ".ci" / "check.py")
check = module_from_spec(SPEC)
SPEC.loader.exec_module(check)

FILES = {
    "clara/text/passages.py": "",
    "clara/text/tokenizer.py": "",
    "clara/config.py": "",
    "kernels/clara_kernels/corpus/corpus.py": "",
    "bench/work.py": "",
    "bench/operators/suite.py": "",
    "tests/clara/conftest.py": "",
    "tests/clara_kernels/comparison.py": "",
    "tests/clara/text/test_passages.py": "import clara.text.passages\n",
    "tests/clara/text/test_tokenizer.py": "def test():\n    from clara.text import tokenizer\n",
    "tests/clara/test_config.py": "from clara.config import ClaraConfig\n",
    "tests/clara/cli/test_cli.py": "from clara.text.passages import split\n",
    "tests/clara_kernels/corpus/test_corpus.py": "",
    "tests/clara_kernels/corpus/test_corpus_files.py": "",
    "tests/clara_kernels/test_dispatch.py": "from clara_kernels.corpus import corpus\n",
    "tests/clara_kernels/cosine_topk/test_rows.py": "from comparison import launches\n",
    "tests/bench/toys.py": "",
    "tests/bench/test_quote.py": "from bench import work\n",
    "tests/bench/operators/test_main.py": "import bench.operators.suite\nfrom ..toys import one\n",
    "tests/test_contract.py": "",
    "tests/test_pages.py": "",
}


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--initial-branch", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "first")
    return tmp_path


def commit(tree: Path, name: str) -> None:
    (tree / name).write_text("# changed\n")
    git(tree, "add", ".")
    git(tree, "commit", "--message", name)


def test_what_a_branch_changed_is_committed_or_not(tree):
    git(tree, "switch", "--create", "work")
    commit(tree, "clara/config.py")
    (tree / "clara/text/passages.py").write_text("# changed\n")
    (tree / "clara/text/new.py").write_text("")
    (tree / "bench/work.py").unlink()
    names = ["clara/config.py", "clara/text/new.py", "clara/text/passages.py"]
    assert check.changed_files(tree, "main") == names


def test_what_the_base_itself_got_meanwhile_is_not_ours(tree):
    git(tree, "switch", "--create", "work")
    commit(tree, "clara/config.py")
    git(tree, "switch", "main")
    commit(tree, "clara/text/passages.py")
    git(tree, "switch", "work")
    assert check.changed_files(tree, "main") == ["clara/config.py"]


def test_on_the_base_the_last_commit_counts(tree):
    assert check.changed_files(tree, "main") == []
    commit(tree, "clara/config.py")
    commit(tree, "clara/text/passages.py")
    assert check.changed_files(tree, "main") == ["clara/text/passages.py"]


def test_a_base_that_is_not_there(tree):
    with pytest.raises(SystemExit, match="error: git merge-base nothing HEAD"):
        check.changed_files(tree, "nothing")


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        (
            ["clara/text/passages.py"],
            ["tests/clara/text/test_passages.py", "tests/clara/cli/test_cli.py"],
        ),
        (["clara/text/tokenizer.py"], ["tests/clara/text/test_tokenizer.py"]),
        (["clara/config.py"], ["tests/clara/test_config.py"]),
        (
            ["kernels/clara_kernels/corpus/corpus.py"],
            [
                "tests/clara_kernels/corpus/test_corpus.py",
                "tests/clara_kernels/corpus/test_corpus_files.py",
                "tests/clara_kernels/test_dispatch.py",
            ],
        ),
        (["bench/work.py"], ["tests/bench/test_quote.py"]),
        (["bench/operators/suite.py"], ["tests/bench/operators/test_main.py"]),
        (["tests/bench/toys.py"], ["tests/bench/operators/test_main.py"]),
        (
            ["tests/clara_kernels/comparison.py"],
            ["tests/clara_kernels/cosine_topk/test_rows.py"],
        ),
        (
            ["tests/clara/conftest.py"],
            [
                "tests/clara/cli/test_cli.py",
                "tests/clara/test_config.py",
                "tests/clara/text/test_passages.py",
                "tests/clara/text/test_tokenizer.py",
            ],
        ),
        (["pyproject.toml"], ["tests/test_contract.py"]),
        (["docs/model.md"], ["tests/test_pages.py"]),
        (
            ["clara/config.py", "tests/bench/test_quote.py"],
            ["tests/bench/test_quote.py", "tests/clara/test_config.py"],
        ),
        (["LICENSE"], []),
    ],
)
def test_the_tests_of_a_change(tree, changed, tests):
    assert check.tests_of(tree, changed) == tests


@pytest.mark.parametrize(
    ("body", "passes"),
    [("pass", True), ("raise ValueError", False), ("import time; time.sleep(600)", True)],
)
def test_tests_are_stopped_when_the_time_is_over(tmp_path, monkeypatch, capfd, body, passes):
    """Where none failed until then, the check passes and says what is left."""
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "PATIENCE", 1)  # a test that sleeps does not stop by itself
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n    gpu: gpu\n")
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    assert check.run_tests(["test_it.py"], 5 if "sleep" in body else 300) is passes
    assert ("The minute is over" in capfd.readouterr().out) == ("sleep" in body)


def test_an_interrupt_ends_the_tests_too(tmp_path):
    """Ctrl-C reaches `make check` alone: pytest has a process group of its own."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n    gpu: gpu\n")
    (tmp_path / "test_it.py").write_text(
        "import os, time\nfrom pathlib import Path\n\n\ndef test_it():\n"
        "    Path('started').write_text(str(os.getpid()))\n    time.sleep(600)\n"
    )
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('check', {str(ROOT / '.ci/check.py')!r})\n"
        "check = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(check)\n"
        "check.ROOT, check.PATIENCE = pathlib.Path.cwd(), 1\ncheck.run_tests(['test_it.py'], 600)\n"
    )
    started = tmp_path / "started"
    # A background job of a shell without job control ignores Ctrl-C, and so would the process.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, preexec_fn=heard) as process:
        deadline = time.monotonic() + 300
        while not (started.is_file() and started.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) != 0
    worker = int(started.read_text())
    while running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False
