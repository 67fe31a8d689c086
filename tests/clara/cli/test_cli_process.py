"""What only shows in a process of its own: exit status, streams, tracebacks, start-up."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import clara
import clara_kernels
from clara.cli.app import app
from clara.index import corpus

COMMANDS = ["init", "convert", "compress", "search", "ask", "info", "doctor", "demo"]


def test_versions_agree(process):
    result = process("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"clara {clara.__version__}\n"
    assert clara.__version__ == clara_kernels.__version__


@pytest.mark.parametrize("arguments", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help(clara, arguments):
    printed = clara(*arguments).stdout
    assert "Usage: " in printed
    if len(arguments) < 2:
        assert all(name in printed for name in COMMANDS)


def test_help_loads_no_heavy_package(environment):
    code = """
import sys
from clara.cli import main
sys.argv = ["clara", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
heavy = ("torch", "transformers", "peft", "lance", "pyarrow", "numpy", "clara_kernels")
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_package_is_lazy_and_complete(environment):
    code = """
import sys
import clara
assert "torch" not in sys.modules
assert set(clara.__all__) <= set(dir(clara))
assert clara.ClaraConfig().memory_tokens == 16
from clara import *
assert Clara is clara.Clara and Document("a", "b").id == "a"
try:
    clara.Nothing
except AttributeError as error:
    assert str(error) == "module 'clara' has no attribute 'Nothing'"
else:
    raise SystemExit(1)
try:
    from clara import Nothing
except ImportError:
    print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.stdout == "done\n", result.stderr


def test_lazy_names_are_those_for_type_checkers():
    tree = ast.parse(Path(clara.__file__).read_text())
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("clara.")
        if node.module != "clara.lazy"
        for alias in node.names
    }
    (call,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    package, modules = call.args
    assert ast.unparse(call.func) == "on_first_use"
    assert ast.unparse(package) == "__name__"
    assert imported == ast.literal_eval(modules)
    assert sorted(imported) == clara.__all__


def test_error_is_one_line_and_no_traceback(process, tmp_path):
    result = process("info", str(tmp_path / "none"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path}/none: no such folder\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["compose"], "No such command 'compose'"),
        (["--loud"], "--loud"),
        (["info"], "Missing argument"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["compress", "--model"], "--model"),
    ],
)
def test_bad_usage_is_one_line(process, arguments, reason):
    result = process(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert "--help'" in line


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_where_an_error_comes_from(process, environment, tmp_path, how):
    arguments = ["info", str(tmp_path / "none")]
    if how == "option":
        result = process("--debug", *arguments)
    else:
        result = process(*arguments, env={**environment, "CLARA_DEBUG": "1"})
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback ")
    assert result.stderr.splitlines()[-1].endswith("no such folder")


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError])
def test_bugs_keep_their_traceback(monkeypatch, index, error):
    def broken(folder):
        raise error("a bug")

    monkeypatch.setattr("clara.cli.inspection.inspect", broken)
    result = CliRunner().invoke(app, ["info", index])
    assert isinstance(result.exception, error)
    assert result.stderr == ""


def test_missing_package_and_full_disk_are_no_bugs(monkeypatch, refused, index):
    def missing(folder):
        raise ModuleNotFoundError("No module named 'lance'", name="lance")

    def full(folder):
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr("clara.cli.inspection.inspect", missing)
    assert "needs the package lance, which is not installed" in refused("info", index)
    monkeypatch.setattr("clara.cli.inspection.inspect", full)
    assert refused("info", index) == "error: /some/file: No space left on device"


def test_device_out_of_memory_is_no_bug(monkeypatch, refused, index):
    def too_much(folder):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("clara.cli.inspection.inspect", too_much)
    line = refused("info", index)
    assert "--batch-tokens" in line
    assert "Tried to allocate 2 GiB" in line


def test_message_cannot_steer_the_terminal(refused, tmp_path):
    line = refused("info", str(tmp_path / "a\x1b[2J\nb"))
    assert line.isprintable()


def test_interrupt_within_a_command(monkeypatch, clara, index):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("clara.cli.inspection.inspect", interrupted)
    result = clara("info", index, code=130)
    assert (result.stdout, result.stderr) == ("", "")


def test_closed_pipe_is_quiet(start, index):
    readable, writable = os.pipe()
    running = start("info", index, stdout=writable)
    os.close(writable)
    os.close(readable)
    _, errors = running.communicate(timeout=300)
    assert errors == ""


@pytest.mark.slow
def test_locale_without_unicode(process, environment, write_corpus, model, index, tmp_path):
    record = {"id": "ü", "contents": "Übersicht 東京", "title": "☃"}
    target = str(tmp_path / "index")
    plain = {**environment, "PYTHONIOENCODING": "ascii"}
    arguments = ["--model", model, "--corpus", write_corpus([record]), "--output", target]
    assert process("compress", *arguments, env=plain).returncode == 0
    result = process("search", "--model", model, "--index", target, "東京", env=plain)
    assert (result.returncode, result.stderr) == (0, "")


def test_resumable_group_is_hundreds_of_documents():
    assert 100 <= corpus.GROUP <= 1000
