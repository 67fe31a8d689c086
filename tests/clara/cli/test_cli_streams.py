"""Standard streams as cron, services and impatient readers leave them."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest
import yaml

from clara.cli import streams
from clara.index import MemoryIndex

CLARA = f"{sys.executable} -c 'from clara.cli import main; main()'"


@pytest.fixture
def shell(environment):
    """Run a command line of bash, in which `clara` is the command."""

    def run(script, **variables):
        script = f'clara() {{ {CLARA} "$@"; }}\n{script}'
        return subprocess.run(
            ["bash", "-c", script],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_work_is_done_with_streams_closed(shell, model, write_corpus, tmp_path, closed):
    arguments = f"--model {model} --corpus {write_corpus(count=3)} --output {tmp_path}/index"
    done = shell(f"clara compress {arguments} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert MemoryIndex.open(tmp_path / "index").ids() == ["d0", "d1", "d2"]
    # Nothing that was printed got into a file that was opened in place of a stream.
    assert MemoryIndex.open(tmp_path / "index").get(["d2"]).texts[0].startswith("Country 2 has")


@pytest.mark.slow
def test_training_with_all_streams_closed(shell, backbone, tmp_path):
    record = {"data_type": "qa", "question": ["Who?"], "answers": ["Ada"], "docs": ["It was Ada."]}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(record)}\n" * 4)
    settings = {
        "backbone": backbone,
        "document_length": 64,
        "compression_rate": 16,
        "lora_rank": 4,
        "train_data": str(tmp_path / "data.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    done = shell(f"clara train pretrain --config {tmp_path}/settings.yaml <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_output_is_whole_with_other_streams_closed(shell, index):
    done = shell(f"clara info --json {index} <&- 2>&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["documents"] == 6


def test_an_error_keeps_its_status_with_streams_closed(shell, tmp_path):
    assert shell(f"clara info {tmp_path}/none 2>&-").returncode == 1
    assert shell("clara compose 2>&-").returncode == 2
    assert shell(f"clara info {tmp_path}/none 2>/dev/full").returncode == 1


@pytest.mark.parametrize(
    "arguments", ["--version", "--help", "", "ask --help", "info INDEX", "index list INDEX"]
)
def test_lost_output_is_an_error(shell, index, arguments):
    done = shell(f"clara {arguments.replace('INDEX', index)} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == ("error: standard output could not be written: No space left on device\n")


@pytest.mark.slow
def test_work_is_done_though_its_summary_is_lost(shell, model, write_corpus, tmp_path):
    arguments = f"--model {model} --corpus {write_corpus(count=3)} --output {tmp_path}/index"
    done = shell(f"clara compress {arguments} >/dev/full")
    assert done.returncode == 0
    assert "standard output could not be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert MemoryIndex.open(tmp_path / "index").ids() == ["d0", "d1", "d2"]
    assert shell(f"clara index delete {tmp_path}/index d1 --yes >/dev/full").returncode == 0
    assert MemoryIndex.open(tmp_path / "index").ids() == ["d0", "d2"]


@pytest.mark.parametrize("arguments", ["--version", "--help", "info --json INDEX"])
def test_a_reader_that_leaves_is_no_error(shell, index, arguments):
    arguments = arguments.replace("INDEX", index)
    done = shell(f"clara {arguments} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_stream(shell, model, index):
    """The answer goes on for 400 tokens, which nobody reads."""
    ask = f"clara ask --model {model} --index {index} --stream --max-new-tokens 400 Where?"
    done = shell(f"{ask} | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == 1


@pytest.fixture(scope="module")
def usual_help():
    done = subprocess.run(
        ["bash", "-c", f"{CLARA} ask --help"], capture_output=True, text=True, timeout=300
    )
    return done.stdout


@pytest.mark.parametrize(
    "variables",
    [
        {"COLUMNS": "0"},
        {"COLUMNS": "-3"},
        {"COLUMNS": "²"},
        {"COLUMNS": "9" * 12},
        {"COLUMNS": "1", "LINES": "0"},
        {"TERMINAL_WIDTH": "wide"},
        {"TERM": ""},
    ],
)
def test_sizes_of_terminals_that_are_none(shell, usual_help, variables):
    assert shell("clara ask --help", **variables).stdout == usual_help


def test_unset_terminal(shell):
    done = shell("unset TERM; clara ask --help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--top-k" in done.stdout


def test_descriptors_are_not_left_for_other_files(environment, tmp_path):
    code = f"""
import os, sys
from clara.cli import streams
assert sys.stdout is None and sys.stderr is None and sys.stdin is None
streams.prepare()
file = open({str(tmp_path / "log")!r}, "w")
assert file.fileno() > 2, file.fileno()
for descriptor in range(3):
    os.fstat(descriptor)
os.system("echo lost; echo lost >&2")
print("lost")
print("lost", file=sys.stderr)
assert sys.stdin.read() == ""
file.write("kept")
"""
    script = f'exec {sys.executable} -c "$CODE" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", script], env={**environment, "CODE": code}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "log").read_text() == "kept"
    assert os.listdir(tmp_path) == ["log"]


def test_a_full_pipe_that_does_not_block_is_waited_for():
    """A parent process may have set its end of the pipe so."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    text = b"0123456789" * 100_000  # more than any pipe holds
    read = []

    def reader():
        while block := os.read(ours, 1 << 16):
            read.append(block)

    thread = threading.Thread(target=reader)
    with io.BufferedWriter(streams.Output(theirs, needed=True)) as output:
        timer = threading.Timer(0.2, thread.start)
        timer.start()
        output.write(text)
    os.close(theirs)
    timer.join()
    thread.join()
    os.close(ours)
    assert b"".join(read) == text
