"""Runs that are killed with -9 go on as if they had not been."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from ...plugins.warm import kill

PROGRAM = Path(__file__).with_name("killed_run.py")
TIMES = ("timings_ms", "seconds_per_document")


def started(warm, model, output, pause):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [warm(environment).python, str(PROGRAM), str(model), str(output), str(pause)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(warm, model, output):
    process = started(warm, model, output, 0)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def lines(file):
    """The lines of a file without what differs from run to run."""
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES}
        for line in file.read_text().splitlines()
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny_model, warm, tmp_path):
    model, whole, killed = tmp_path / "model", tmp_path / "whole", tmp_path / "killed"
    tiny_model.save_pretrained(model)
    finished(warm, model, whole)
    for name, count in (("rankings", 33), ("answers", 9), ("answers", 150)):
        file = killed / f"{name}.jsonl"
        process = started(warm, model, killed, 0.1)
        end = time.monotonic() + 120
        while not (file.exists() and file.read_bytes().count(b"\n") >= count):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        kill(process)
        process.communicate()
        assert not (killed / "summary.json").exists()
    # The kill may have cut a line too.
    with (killed / "answers.jsonl").open("ab") as cut:
        cut.write(b'{"entry": "closed-b')
    assert "the last line is cut off" in finished(warm, model, killed)
    for name in ("answers.jsonl", "rankings.jsonl"):
        assert lines(killed / name) == lines(whole / name)
    for name in ("qrels.trec", "ranking.random.trec"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    one, other = (json.loads((each / "summary.json").read_text()) for each in (whole, killed))
    assert one["pairs"] == other["pairs"]
    assert [each["scores"] for each in one["entries"]] == [
        each["scores"] for each in other["entries"]
    ]
