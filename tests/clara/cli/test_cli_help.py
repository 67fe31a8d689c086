"""What `--help` shows: every command has an example that the command itself accepts."""

import io
import re
import shlex

import pytest
import typer

from clara.cli.app import app


def commands(group, above=()):
    """The words of every command, and the command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name), command


ALL = dict(commands(typer.main.get_command(app)))


@pytest.fixture(autouse=True)
def environment_of_the_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("CLARA_MODEL", "models/mine")
    monkeypatch.setenv("CLARA_INDEX", "index")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_examples_are_accepted(clara, words, monkeypatch):
    printed = clara(*words, "--help").stdout
    examples = re.findall(r"(?:\$|Example:) (clara .*)", printed)
    assert examples, f"clara {' '.join(words)} has no example"
    for example in examples:
        given = shlex.split(example.partition(" < ")[0], comments=True)
        assert tuple(given[1 : len(words) + 1]) == words, example
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a question")))
        arguments = given[len(words) + 1 :]
        assert arguments != ["--help"]
        context = ALL[words].make_context("clara", arguments, resilient_parsing=False)
        assert context.params


def test_examples_stand_on_lines_of_their_own(clara):
    printed = clara("ask", "--help").stdout
    lines = [line.strip() for line in printed.splitlines()]
    assert '$ clara ask --model models/mine --index index "Where is Aruba?"' in lines
    assert "$ export CLARA_MODEL=models/mine CLARA_INDEX=index" in lines
    assert "$ clara ask --json - < question.txt" in lines
