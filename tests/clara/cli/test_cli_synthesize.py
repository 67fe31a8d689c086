import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from clara.data import write_jsonl
from clara.data.records import Document

pytest.importorskip("openai")

_PATH = Path(__file__).parents[1] / "synthesis" / "server.py"
_SPEC = importlib.util.spec_from_file_location("synthesis_server", _PATH)
server_module = importlib.util.module_from_spec(_SPEC)
sys.modules["synthesis_server"] = server_module
_SPEC.loader.exec_module(server_module)


@pytest.fixture
def server():
    made = server_module.Server()
    yield made
    made.close()


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "docs.jsonl"
    write_jsonl(file, [Document(f"d{i}", f"The x of y{i} is z{i}.") for i in range(4)])
    return file


@pytest.fixture
def arguments(server, corpus, tmp_path):
    return [
        *("synthesize", "--corpus", str(corpus), "--output", str(tmp_path / "out.jsonl")),
        *("--generator", "openai:m", "--base-url", server.url, "--retries", "0"),
    ]


def test_records_and_report(clara, arguments, tmp_path):
    done = clara(*arguments, "--limit", "3", "--price-input", "1", "--price-output", "2")
    (line,) = done.stdout.splitlines()  # the table is for terminals
    assert "3 of 3 documents, 3 simple pairs" in line
    assert "0 reused, the journal held 0)" in line
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["cost"]["run"] > 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6
    report = json.loads(clara(*arguments, "--limit", "3", "--json").stdout)
    assert report["reused_replies"] == report["calls"]
    assert "cost" not in report


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--generator", "local:/no/such"], "cannot load generator '/no/such'"),
        (["--corpus", "missing.jsonl"], "missing.jsonl: No such file"),
        (["--output", "/no/such/out.jsonl"], "/no/such: no such folder"),
        (["--prompts", "missing.yaml"], "missing.yaml: No such file"),
    ],
)
def test_bad_input(refused, arguments, changed, message):
    assert message in refused(*arguments, *changed)


@pytest.mark.parametrize("name", ["gpt", "openai:", "OpenAI:gpt", ":gpt"])
def test_generators_that_are_none(refused, arguments, name):
    line = refused(*arguments, "--generator", name, code=2)
    assert f"--generator must be openai:MODEL or local:FOLDER_OR_ID, got {name!r}" in line


@pytest.mark.parametrize("option", ["--max-rounds", "--requests-per-minute", "--concurrency"])
def test_options_out_of_range(process, arguments, option):
    done = process(*arguments, option, "0")
    assert done.returncode == 2
    assert option in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_table_on_a_terminal(clara, arguments, monkeypatch):
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("clara.cli.synthesize.sys", SimpleNamespace(stdout=terminal))
    printed = clara(*arguments, "--price-input", "1").stdout
    assert all(each in printed for each in ("pairs per document", "mean: 1.0", "cost", "retries"))


@pytest.mark.parametrize(
    ("option", "value"), [("--price-input", "inf"), ("--timeout", "nan"), ("--max-tokens", "1e9")]
)
def test_numbers_that_are_none(process, arguments, option, value):
    done = process(*arguments, option, value)
    assert done.returncode == 2
    assert option in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_corpus_is_not_overwritten(refused, arguments, corpus):
    before = corpus.read_bytes()
    line = refused(*arguments, "--output", str(corpus), code=2)
    assert "--output must be a file of its own" in line
    assert corpus.read_bytes() == before


@pytest.mark.slow
def test_interrupt_is_one_line(start, arguments, server, tmp_path):
    server.delay = 0.2
    running = start(*arguments)
    while len(server.requests) < 6:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    printed, errors = running.communicate(timeout=300)
    assert (running.returncode, printed) == (130, "")
    assert errors == (
        f"interrupted: {tmp_path}/out.jsonl.journal: keeps the replies so far; "
        "run the same command to continue\n"
    )
    assert not (tmp_path / "out.jsonl").exists()


def test_a_server_that_refuses(refused, arguments, server):
    body = json.dumps({"error": {"message": "bad key\nsecond line"}}).encode()
    server.behave = lambda *_: (401, {}, body)
    assert "401: " in refused(*arguments)


def test_without_the_package(refused, arguments, monkeypatch):
    import clara.synthesis.server as generators

    monkeypatch.setattr(generators, "find_spec", lambda name: None)
    assert "needs the package openai" in refused(*arguments)


GUIDE = (Path(__file__).parents[3] / "docs" / "synthesis.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("commands", re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL))
def test_the_guide(commands, server, corpus, environment, warm):
    """The guide's commands, with this server in place of the ones it names."""
    (wording,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    (corpus.parent / "prompts.yaml").write_text(wording, encoding="utf-8")
    script = re.sub(r"http://\S+", server.url, commands.replace("$ ", ""))
    scripts = os.pathsep.join([str(warm(environment).bin), environment["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=corpus.parent,
        env={**environment, "PATH": scripts},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "4 of 4 documents" in done.stdout
