"""What a run says while it goes on."""

import pytest
from transformers import TrainerControl, TrainerState

from clara.training.callbacks import LineProgress


class Run:
    """A run of steps that each take some seconds, logged at every so many."""

    def __init__(self, *, steps, seconds, logged=1, start=0, interval=30.0):
        self.time, self.seconds, self.logged = 1000.0, seconds, logged
        self.state = TrainerState(max_steps=steps, global_step=start, is_world_process_zero=True)
        self.control = TrainerControl()
        self.progress = LineProgress(interval, clock=lambda: self.time)

    def go(self):
        progress, state, control = self.progress, self.state, self.control
        progress.on_train_begin(None, state, control)
        while state.global_step < state.max_steps:
            state.global_step += 1
            self.time += self.seconds
            control.should_log = state.global_step % self.logged == 0
            progress.on_step_end(None, state, control)
            if control.should_log:
                progress.on_log(None, state, control, {"loss": 10.0 / state.global_step})
        progress.on_train_end(None, state, control)


def test_lines_come_every_half_minute(capsys):
    Run(steps=100, seconds=7, logged=10).go()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "train: step 1/100, about 0:11:33 left"
    assert lines[1] == "train: step 6/100, about 0:10:58 left"
    assert lines[2] == "train: step 11/100, loss 1, about 0:10:23 left"
    assert lines[-1] == "train: step 100/100, loss 0.1, 0:11:40"
    steps = [int(line.split()[2].partition("/")[0]) for line in lines]
    assert all(later - sooner >= 5 for sooner, later in zip(steps[:-2], steps[1:-1]))


def test_a_short_run_has_its_first_and_last_step(capsys):
    Run(steps=50, seconds=0.01).go()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "train: step 1/50, loss 10, about 0:00:00 left"
    assert last == "train: step 50/50, loss 0.2, 0:00:00"


def test_a_run_of_one_step_has_one_line(capsys):
    Run(steps=1, seconds=3700).go()
    assert capsys.readouterr().err == "train: step 1/1, loss 10, 1:01:40\n"


def test_time_is_counted_from_where_a_run_is_resumed(capsys):
    Run(steps=20, seconds=10, start=10).go()
    assert capsys.readouterr().err.startswith("train: step 11/20, loss 0.9091, about 0:01:30 left")


@pytest.mark.parametrize("case", ["nothing left", "another process", "a terminal"])
def test_runs_that_say_nothing(capsys, monkeypatch, case):
    run = Run(steps=5, seconds=60, start=5 if case == "nothing left" else 0)
    run.state.is_world_process_zero = case != "another process"
    monkeypatch.setattr("clara.training.callbacks.is_terminal", lambda: case == "a terminal")
    run.go()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", [None, "closed", "full"])
def test_a_stream_that_cannot_be_written_does_not_end_a_run(monkeypatch, stream):
    if stream is not None:
        stream = open("/dev/full" if stream == "full" else "/dev/null", "w")  # noqa: SIM115
    monkeypatch.setattr("sys.stderr", stream)
    run = Run(steps=3, seconds=60)
    if stream is not None and stream.name == "/dev/null":
        stream.close()
    run.go()
    assert run.state.global_step == 3
    monkeypatch.undo()
