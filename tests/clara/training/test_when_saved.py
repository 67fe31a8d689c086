"""Checkpoints by time, and those that an evaluation does not delay."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from clara.training.folder import checkpoints, read_log
from clara.training.run import run
from clara.training.saving import SaveByTime
from clara.training.settings import SettingsError, check_early
from clara.training.trainer import ClaraTrainer

EVALUATED = {
    "evaluation": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "config": {"lora_dropout": 0.2},  # draws random numbers in every step
}


@pytest.fixture
def killed(monkeypatch):
    """A function that has the n-th evaluation from now on end the process."""
    evaluate = ClaraTrainer.evaluation_loop
    left = [0]

    def counted(self, *arguments, **settings):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return evaluate(self, *arguments, **settings)

    monkeypatch.setattr(ClaraTrainer, "evaluation_loop", counted)

    def kill_in(number):
        left[0] = number

    return kill_in


def tensors(folder):
    return {
        f"{file.relative_to(folder)}:{name}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def without_times(records):
    timed = ("hours", "tokens_per_second", "eval_runtime", "per_second")
    return [{n: v for n, v in r.items() if not any(t in n for t in timed)} for r in records]


@pytest.mark.parametrize(("evaluation", "schedule"), [(1, "reduce_lr_on_plateau"), (3, "constant")])
def test_a_kill_during_an_evaluation_costs_no_step(
    settings, tmp_path, killed, evaluation, schedule
):
    """In the middle of an epoch, and at the end of it and of the run."""
    chosen = {**EVALUATED, "max_steps": 6, "lr_scheduler_type": schedule}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("pretrain", settings("whole", **chosen))
    killed(evaluation)
    with pytest.raises(KeyboardInterrupt):
        run("pretrain", settings("broken", **chosen))
    last = checkpoints(broken)[-1]
    assert last.name == f"checkpoint-{2 * evaluation}"
    outcome = run("pretrain", settings("broken", **chosen), resume=True)
    assert outcome.steps == 6
    logs = [read_log(folder / "log.jsonl") for folder in (whole, broken)]
    kept = [[r for r in log if "loss" in r or "eval_loss" in r] for log in logs]
    assert without_times(kept[1]) == without_times(kept[0])
    assert sum("eval_loss" in r for r in kept[0]) == 3
    expected = tensors(whole)
    found = tensors(broken)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_evaluation_at_the_end_of_the_hours_is_made_up_for(settings, tmp_path, killed):
    chosen = {**EVALUATED, "max_steps": 4, "eval_steps": 4, "save_steps": 4}
    killed(1)
    with pytest.raises(KeyboardInterrupt):
        run("pretrain", settings(max_hours=1e-9, **chosen))
    folder = tmp_path / "run"
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-1"]
    # Evaluated once, and not again when the hours are over still.
    for _ in range(2):
        assert run("pretrain", settings(max_hours=1e-9, **chosen), resume=True).steps == 1
        log = read_log(folder / "log.jsonl")
        assert [r["step"] for r in log if "eval_loss" in r] == [1]
    state = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_text("utf-8"))
    assert state["best_global_step"] == 1
    # Without evaluations from then on, none is owed.
    killed(1)
    with pytest.raises(KeyboardInterrupt):
        run("pretrain", settings(max_hours=10, **chosen), resume=True)
    without = settings(max_hours=10, max_steps=4, save_steps=4, config=EVALUATED["config"])
    assert run("pretrain", without, resume=True).steps == 4


def evaluations(folder):
    return [r["step"] for r in read_log(folder / "log.jsonl") if "eval_loss" in r]


def owes(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return state["stateful_callbacks"]["TrainerControl"]["args"]["should_evaluate"]


def test_what_is_saved_by_time_keeps_its_scores_where_only_the_best_is_saved(settings, tmp_path):
    worse = {"metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 0.05}
    chosen = {"evaluation": True, "eval_strategy": "steps", "eval_steps": 1, **worse}
    made = settings(save_strategy="best", save_minutes=1e-9, max_steps=3, **chosen)
    run("pretrain", made)
    folder = tmp_path / "run"
    assert not any(owes(checkpoint) for checkpoint in checkpoints(folder))
    run("pretrain", made, resume=True)
    assert evaluations(folder) == [1, 2, 3]


def test_no_step_is_evaluated_twice(settings, tmp_path, killed):
    """Patience would take the second time for one without an improvement."""
    chosen = {"evaluation": True, "load_best_model_at_end": True, "patience": 1, "max_steps": 4}
    epochs = {**chosen, "eval_strategy": "epoch", "save_strategy": "epoch"}
    folder = tmp_path / "hours"  # over in the middle of an epoch
    for _ in range(2):
        run("pretrain", settings("hours", max_hours=1e-9, **epochs), resume=True)
        assert evaluations(folder) == [1]
    assert run("pretrain", settings("hours", max_hours=9, **epochs), resume=True).steps == 4
    assert evaluations(folder) == [1, 4]
    folder = tmp_path / "start"
    steps = {**chosen, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    killed(2)
    with pytest.raises(KeyboardInterrupt):
        run("pretrain", settings("start", **steps))
    assert run("pretrain", settings("start", **steps), resume=True).steps == 4
    assert evaluations(folder) == [0, 2, 4]


def test_checkpoints_by_time():
    now = [50.0]
    saving = SaveByTime(2, clock=lambda: now[0])
    state = TrainerState()
    now[0] += 1000  # until training begins
    saving.on_train_begin(None, state, TrainerControl())
    saved = []
    for step in range(1, 14):
        now[0] += 50
        control = TrainerControl(should_save=step == 5)
        saving.on_step_end(None, state, control)
        if control.should_save:
            saved.append(step)
            saving.on_save(None, state, control)
            now[0] += 30  # a slow disk
            saving.on_save(None, state, control)
    assert saved == [3, 5, 8, 11]
    together = SaveByTime(2, lambda mine: True, lambda: now[0])
    control = TrainerControl()
    together.on_step_end(None, state, control)
    assert control.should_save


def test_a_run_that_saves_by_time(settings, tmp_path):
    run("pretrain", settings(max_steps=3, save_steps=100, save_minutes=1e-9))
    names = [c.name for c in checkpoints(tmp_path / "run")]
    assert names == [f"checkpoint-{step}" for step in (1, 2, 3)]
    # How often is free to change.
    again = settings(max_steps=5, save_steps=100, save_minutes=60, lr_scheduler_type="linear")
    assert run("pretrain", again, resume=True).steps == 5
    names = [c.name for c in checkpoints(tmp_path / "run")]
    assert names == [f"checkpoint-{step}" for step in (1, 2, 3, 5)]


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), "often"])
def test_no_minutes_between_checkpoints(settings, minutes):
    with pytest.raises(SettingsError, match="save_minutes must be a number"):
        check_early(settings(save_minutes=minutes))
