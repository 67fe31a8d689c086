"""The output of `make gpu-train` and its clock."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from clara import Clara, ClaraConfig


@pytest.fixture(scope="module")
def model(backbone):
    config = ClaraConfig(memory_form="spans", compression_rate=4, lora_rank=4, dtype="float32")
    return Clara.from_backbone(backbone[1], config)


def test_an_output_over_the_limits(scripts, model, tmp_path, monkeypatch):
    output = scripts.run.Output(tmp_path / "out", {"stage": "instruct"})
    output.write(model, {"steps": 1})
    first = (tmp_path / "out" / "result.json").read_text()
    (tmp_path / "out" / "log").write_text("a ninth file")
    with pytest.raises(ValueError, match=r"would hold 9 files, of which 8 come back: log, result"):
        output.write(model, {"steps": 2})
    (tmp_path / "out" / "log").rename(tmp_path / "log")
    monkeypatch.setattr(scripts.run, "MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors would have 0\.\d MiB"):
        output.write(model, {"steps": 2})
    assert (tmp_path / "out" / "result.json").read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def result_of_whole_files(scripts, folder):
    result = json.loads((folder / "result.json").read_text())
    sums = scripts.train.sums_of(folder)
    assert {name: sums[name] for name in result["files"]} == result["files"]
    return result


def test_the_end_comes_before_files_are_replaced(scripts, model, tmp_path, monkeypatch):
    output = scripts.run.Output(tmp_path / "out", {"stage": "instruct"})
    output.write(model, {"steps": 1})
    first = result_of_whole_files(scripts, tmp_path / "out")
    check = output._check

    def at_the_end(*arguments, **named):
        check(*arguments, **named)
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(output, "_check", at_the_end)
    with pytest.raises(scripts.run.OutOfTime), scripts.run.ended_by(time.monotonic() + 300):
        output.write(model, {"steps": 2})
    output.end("its time")
    assert result_of_whole_files(scripts, tmp_path / "out") == {**first, "ended": "its time"}


def test_the_end_comes_while_files_are_replaced(scripts, model, tmp_path, monkeypatch):
    output = scripts.run.Output(tmp_path / "out", {"stage": "instruct"})
    replace = os.replace

    def at_the_end(source, target):
        replace(source, target)
        if Path(target).parent.name == "out":
            signal.raise_signal(signal.SIGALRM)

    def run():
        with scripts.run.ended_by(time.monotonic() + 300):
            output.write(model, {"steps": 1})
            output.write(model, {"steps": 2})  # never begins

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", at_the_end)
        with pytest.raises(scripts.run.OutOfTime):
            run()
    output.end("its time")
    result = result_of_whole_files(scripts, tmp_path / "out")
    assert (result["steps"], result["ended"]) == (1, "its time")
    assert len(result["files"]) == 7


def test_the_clock(scripts):
    """Every minute by a clock of our own; the last evaluation fits before the end."""
    now, written = [0.0], []
    output = SimpleNamespace(write=lambda model, found: written.append(found["steps"]))
    clock = scripts.run.BestByTheClock(output, deadline=200.0, clock=lambda: now[0])
    state = SimpleNamespace(global_step=0, max_steps=1000, log_history=[])
    objective = SimpleNamespace(model=None)

    def step(seconds):
        now[0] += seconds
        state.global_step += 1
        control = SimpleNamespace(
            should_evaluate=False, should_training_stop=False, should_log=False
        )
        clock.on_step_end(None, state, control)
        return control

    def evaluated(match, loss, took):
        now[0] += took
        metrics = {"eval_exact_match": match, "eval_loss": loss}
        clock.on_evaluate(None, state, None, metrics=metrics, model=objective)

    clock.on_train_begin(None, state, None, model=objective)
    evaluated(0.0, 3.0, took=20)
    assert written == [0, 0]
    assert not step(30).should_evaluate
    assert step(10).should_evaluate  # a minute after the last one was asked for
    evaluated(0.0, 2.0, took=20)
    assert not step(39).should_evaluate
    assert step(1).should_evaluate
    evaluated(0.0, 2.5, took=20)
    assert written == [0, 0, 2]  # what is worse replaces nothing
    last = step(20)  # 160 s: 20 more and half of it may be needed, and 10 for all else
    assert last.should_evaluate
    assert last.should_training_stop
    evaluated(0.5, 9.0, took=20)
    assert written == [0, 0, 2, 5]
    assert clock.ended == "3.3 minutes"


def sleep(seconds):
    """Sleep as a library that goes on after every error."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            time.sleep(max(min(end - time.monotonic(), 1), 0))


def test_the_end_comes_in_the_middle_of_anything(scripts):
    began = time.monotonic()
    with pytest.raises(scripts.run.OutOfTime), scripts.run.ended_by(began + 0.05):
        sleep(60)
    assert time.monotonic() < began + 30


def test_the_end_waits_though_another_thread_takes_the_signal(scripts):
    done, over = [], threading.Event()
    other = threading.Thread(target=over.wait)

    def run():
        with scripts.run.ended_by(time.monotonic() + 0.05):
            with scripts.run._undisturbed():
                sleep(0.2)
                done.append("in the block")
            done.append("after it")

    other.start()
    try:
        with pytest.raises(scripts.run.OutOfTime):
            run()
    finally:
        over.set()
        other.join()
    assert done == ["in the block"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_end_comes_again_where_python_drops_it(scripts, monkeypatch):
    class Slow:
        def __del__(self):
            sleep(60)

    monkeypatch.setattr(scripts.run, "AGAIN", 0.1)
    began, reached = time.monotonic(), []

    def run():
        with scripts.run.ended_by(began + 0.05):
            Slow()
            reached.append("the line after")
            sleep(60)

    with pytest.raises(scripts.run.OutOfTime):
        run()
    assert reached == ["the line after"]
    assert time.monotonic() < began + 30
    time.sleep(0.25)  # and no more once the block is left
