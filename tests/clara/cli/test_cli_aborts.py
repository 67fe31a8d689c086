"""A process that reads an index and is ended by a signal, and what is said then."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.contents import compressed, details, new_index

PROGRAM = """
import os, signal, sys
from clara.cli.aborts import explain_aborts
*paths, how = sys.argv[1:]
for path in paths:
    explain_aborts(path)
print("began", flush=True)
if how == "abort":
    os.abort()
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "bus":
    import mmap
    with open(paths[0], "w+b") as file:
        file.write(b"x" * mmap.PAGESIZE)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0)
        file.truncate(0)
        file.flush()
        mapped[0]
if how == "fails":
    raise SystemExit(3)
"""


@pytest.fixture
def ended(environment):
    def run(*arguments, options=(), **settings):
        command = [sys.executable, *options, "-c", PROGRAM, *map(str, arguments)]
        started = time.monotonic()
        result = subprocess.run(
            command, env={**environment, **settings}, capture_output=True, text=True, timeout=60
        )
        assert result.stdout == "began\n"
        assert time.monotonic() - started < 50  # nothing holds its streams
        return result

    return run


@pytest.mark.parametrize(("how", "number"), [("abort", signal.SIGABRT), ("bus", signal.SIGBUS)])
def test_the_index_and_its_check_are_named(ended, tmp_path, how, number):
    result = ended(tmp_path / "my index", how)
    assert result.returncode == -number
    name = shlex.quote(os.path.realpath(tmp_path / "my index"))
    assert result.stderr == (
        f"error: {name}: the process ended while it was in use, perhaps because a file is damaged; "
        f"'clara index verify {name}' names what is\n"
    )


def test_two_indexes_are_both_named(ended, tmp_path):
    said = ended(tmp_path / "one", tmp_path / "two", tmp_path / "one", "abort").stderr
    assert said.count("\n") == 1
    assert f"verify {tmp_path / 'one'}' and 'clara index verify {tmp_path / 'two'}' names" in said


def test_hostile_names_stay_one_line(ended, tmp_path):
    result = ended(tmp_path / "a\nb\x1b[2J%s$(touch gone)`", "abort")
    assert result.returncode == -signal.SIGABRT
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert "%s$(touch gone)`" in result.stderr


@pytest.mark.parametrize(("how", "code"), [("killed", -signal.SIGKILL), ("fails", 3), ("ends", 0)])
def test_nothing_is_said_of_another_end(ended, tmp_path, how, code):
    result = ended(tmp_path / "index", how)
    assert (result.returncode, result.stderr) == (code, "")


def test_who_asked_for_a_traceback_gets_that(ended, tmp_path):
    result = ended(tmp_path / "index", "abort", options=["-X", "faulthandler"])
    assert result.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in result.stderr
    assert "verify" not in result.stderr


def test_commands_explain_it(environment, tmp_path):
    """Lance aborts while an index is opened."""
    (tmp_path / "index" / "_versions").mkdir(parents=True)
    program = """
import os, sys, types
index = types.SimpleNamespace(open=lambda *arguments, **named: os.abort())
sys.modules["clara.index"] = types.SimpleNamespace(MemoryIndex=index)
from clara.cli import main
main()
"""
    for command in (["index", "list", "index"], ["info", "index"]):
        result = subprocess.run(
            [sys.executable, "-c", program, *command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == -signal.SIGABRT, result.stderr
        assert f"clara index verify {os.path.realpath(tmp_path / 'index')}'" in result.stderr


@pytest.mark.slow
def test_a_file_of_an_index_ends_a_command(process, tmp_path):
    """Lance allocates what the end of a file says, however much it is, and aborts."""
    index = new_index(tmp_path / "index")
    index.add(compressed({"d1": 1}), details({"d1": 1}))
    (file,) = Path(index.path, "data").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-16] + b"\xff" * 4 + data[-12:])
    result = process("index", "list", index.path)
    assert result.returncode == -signal.SIGABRT
    assert result.stderr.splitlines()[-1] == (
        f"error: {index.path}: the process ended while it was in use, perhaps because a file is "
        f"damaged; 'clara index verify {index.path}' names what is"
    )
    checked = process("index", "verify", index.path)
    assert checked.returncode == 1
    assert file.name in checked.stdout
    assert "names what is" not in checked.stderr
