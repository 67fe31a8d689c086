"""Hours and positions that a run takes."""

import json
from functools import partial

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from clara.training.budget import Budget
from clara.training.folder import checkpoints, describe, read_log
from clara.training.run import run
from clara.training.settings import SettingsError, check_early


@pytest.fixture
def settings(settings):
    """Of a run of 30 steps that saves nothing by itself."""
    return partial(
        settings,
        max_steps=30,
        per_device_train_batch_size=2,
        lr_scheduler_type="constant",
        logging_steps=5,
        save_steps=100,
    )


def test_a_run_stops_when_its_hours_are_over_and_goes_on_with_more(settings, tmp_path, capsys):
    folder = tmp_path / "run"
    outcome = run("pretrain", settings(max_hours=1e-9))
    assert outcome.steps == 1
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-1"]
    assert (folder / "model" / "config.json").is_file()
    said = " ".join(capsys.readouterr().err.split())
    assert "max_hours 1e-09 is over after step 1 of 30" in said
    found = describe(folder)
    assert (found["finished"], found["model"]) == (False, str(folder / "model"))
    # Its time counts when it is resumed.
    assert run("pretrain", settings(max_hours=1e-9), resume=True).steps == 1
    assert "max_hours 1e-09 is over after step 1 of 30" in " ".join(capsys.readouterr().err.split())
    outcome = run("pretrain", settings(max_hours=10, max_steps=4), resume=True)
    assert outcome.steps == 4
    assert "is over" not in capsys.readouterr().err


def test_hours_and_positions_count_over_resumes(settings, tmp_path):
    folder = tmp_path / "run"
    run("pretrain", settings(max_steps=3))
    first = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    taken = first["stateful_callbacks"]["taken"]
    assert taken["hours"] > 0
    assert taken["positions"] > 0
    # As if it had taken two hours.
    state = checkpoints(folder)[-1] / "trainer_state.json"
    first["stateful_callbacks"]["taken"]["hours"] = 2.0
    state.write_text(json.dumps(first), encoding="utf-8")
    run("pretrain", settings(max_steps=6, logging_steps=1), resume=True)
    record = [r for r in read_log(folder / "log.jsonl") if "loss" in r][-1]
    assert 2.0 <= record["hours"] < 2.5
    whole = tmp_path / "whole"
    run("pretrain", settings(max_steps=6, logging_steps=1, output_dir=str(whole)))
    logged = [r for r in read_log(whole / "log.jsonl") if "loss" in r]
    assert record["positions"] == logged[-1]["positions"]
    assert [r["positions"] for r in logged] == sorted({r["positions"] for r in logged})
    assert describe(folder)["positions"] == record["positions"]
    with pytest.raises(SettingsError, match="learning_rate"):
        run("pretrain", settings(max_steps=6, max_hours=1, learning_rate=1e-3), resume=True)
    assert run("pretrain", settings(max_steps=9, max_hours=1), resume=True).steps == 6


def test_all_processes_stop_where_one_has_used_up_its_hours(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path))
    seconds = 0.0
    for anywhere, stops in ((lambda mine: True, True), (lambda mine: False, False)):
        budget = Budget(1.0, anywhere, lambda: seconds)
        state, control = TrainerState(global_step=3, max_steps=9), TrainerControl()
        budget.on_train_begin(arguments, state, control)
        assert control.should_training_stop is stops
        control = TrainerControl()
        budget.on_step_end(arguments, state, control)
        assert (control.should_training_stop, control.should_save) == (stops, stops)


def test_the_clock_of_a_budget(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path))
    now = [100.0]
    budget = Budget(2.0, clock=lambda: now[0])
    assert budget.hours == 0
    state, control = TrainerState(global_step=1, max_steps=9), TrainerControl()
    budget.on_train_begin(arguments, state, control)
    now[0] += 1.5 * 3600
    budget.on_step_end(arguments, state, control)
    assert not control.should_training_stop
    budget.positions = 700
    budget.write(state)
    again = Budget(2.0, clock=lambda: now[0])
    again.on_train_begin(arguments, state, control)
    assert (again.hours, again.positions) == (1.5, 700)
    now[0] += 0.5 * 3600
    again.on_step_end(arguments, state, control)
    assert control.should_training_stop
    assert control.should_save


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), "long", True])
def test_a_budget_of_nothing(settings, hours):
    with pytest.raises(SettingsError, match="max_hours must be a number"):
        check_early(settings(max_hours=hours))
    with pytest.raises(SettingsError, match="max_hours must be a number"):
        run("pretrain", settings(max_hours=hours))
