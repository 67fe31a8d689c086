"""The whole chain at its smallest size, killed on the way: that it works, not what it measures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def started(output):
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    options = ["--size", "smoke", "--threads", "1", "--output", str(output)]
    return subprocess.Popen(
        [sys.executable, "-m", "bench.quality", *options],
        cwd=output.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_chain_that_is_killed_goes_on_to_its_report(tmp_path):
    output = tmp_path / "quality"
    instructed = output / "learning" / "instruct" / "model"
    with started(output) as process:
        end = time.monotonic() + 300
        while not instructed.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    kept = [instructed, output / "questions", output / "learning" / "data"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    with started(output) as process:
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert {path: path.stat().st_mtime_ns for path in kept} == before

    curve = [json.loads(line) for line in (output / "learning/curve.jsonl").open()]
    assert [each["stage"] for each in curve] == ["text", "instruct", "end-to-end"]
    summary = json.loads((output / "evaluation" / "summary.json").read_text())
    assert summary["questions"] == 8
    assert {each["entry"] for each in summary["entries"]} == {
        "closed-book",
        "clara-none",
        *(
            f"{system}+{ranker}"
            for system in ("clara@8", "clara-shuffled@8", "text", "text-tuned")
            for ranker in ("clara" if "@" in system else "clara@8", "bm25", "random", "gold")
        ),
    }
    assert all(each["questions"] == 8 for each in summary["entries"])
    found = {each["ranker"]: each["recall@1"]["mean"] for each in summary["rankers"]}
    assert found.keys() == {"clara@8", "bm25", "random", "gold"}
    assert found["gold"] == 1
    assert (output / "report" / "report.html").read_text().startswith("<!doctype html>")
    steps = [json.loads(line)["names"]["step"] for line in (output / "steps.jsonl").open()]
    assert steps == ["questions", "training", "text baseline", "evaluation", "report"]
    assert "its figures mean nothing" in (output / "chain.md").read_text()
