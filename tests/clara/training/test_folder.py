"""What the folder of a run tells without torch."""

import json
import os

import pytest

from clara.training.folder import (
    checkpoints,
    describe,
    is_run,
    read_record,
    remove_unfinished,
    restore_replaced,
    write_record,
)


@pytest.fixture
def written(tmp_path):
    log = [
        {"step": 2, "loss": 1.5, "learning_rate": 1e-3},
        {"step": 2, "eval_loss": 1.25, "eval_ce": 1.0, "epoch": 1.0},
        {"step": 4, "loss": 0.5},
        {"step": 4, "train_runtime": 3.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    return tmp_path


def test_a_run_that_goes_on(written):
    write_record(
        written, {"stage": "instruct", "max_steps": 10, "train_data": {"source": "a.jsonl"}}
    )
    (written / "checkpoint-3").mkdir()
    assert is_run(written)
    assert describe(written) == {
        "stage": "instruct",
        "finished": False,
        "steps": 4,
        "max_steps": 10,
        "positions": None,
        "hours": None,
        "hours_left": None,
        "loss": 0.5,
        "scores": {"eval_loss": 1.25, "eval_ce": 1.0},
        "train_data": "a.jsonl",
        "model": None,
        "last_checkpoint": str(written / "checkpoint-3"),
    }


@pytest.fixture
def timed(tmp_path):
    """A function that writes a run of 4 steps of 10, half an hour long, and describes it."""

    def go(**arguments):
        write_record(tmp_path, {"stage": "instruct", "max_steps": 10, "arguments": arguments})
        log = [
            {"step": 2, "loss": 1.5, "positions": 300, "hours": 0.25},
            {"step": 4, "loss": 1.0, "positions": 600, "hours": 0.5},
            {
                "step": 4,
                "eval_loss": 1.25,
                "eval_exact_match": 0.5,
                "eval_exact_match_other@4": 0.25,
                "eval_loss_none": 3.5,
                "eval_recall@5@4": 0.75,
                "eval_runtime": 2.0,
                "eval_prompt over the budget": 3,
                "positions": 600,
                "hours": 0.6,
            },
        ]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
        return describe(tmp_path)

    return go


def test_what_a_run_has_taken_and_still_needs(timed, tmp_path):
    found = timed()
    assert (found["positions"], found["hours"]) == (600, 0.6)
    assert found["hours_left"] == pytest.approx(0.9)  # six steps of 0.15 hours
    assert timed(max_hours=1)["hours_left"] == pytest.approx(0.4)
    assert timed(max_hours=0.5)["hours_left"] == 0
    assert timed(max_hours=100)["hours_left"] == pytest.approx(0.9)
    (tmp_path / "model").mkdir()
    found = describe(tmp_path)
    assert (found["finished"], found["hours_left"]) == (True, None)


def test_a_run_that_goes_on_with_more_hours_is_not_finished(timed, tmp_path):
    """Its model and its checkpoints are those of before, until it writes others."""
    timed()
    model = tmp_path / "model"
    model.mkdir()
    before = (tmp_path / "log.jsonl").stat().st_mtime_ns - 10**9
    os.utime(model, ns=(before, before))
    found = describe(tmp_path)
    assert not found["finished"]
    assert found["hours_left"] == pytest.approx(0.9)


def test_scores_with_their_controls(timed):
    assert timed()["scores"] == {
        "eval_loss": 1.25,
        "eval_exact_match": 0.5,
        "eval_exact_match_other@4": 0.25,
        "eval_loss_none": 3.5,
        "eval_recall@5@4": 0.75,
    }


def test_a_finished_run_of_an_earlier_version(written):
    (written / "model").mkdir()
    found = describe(written)
    assert (found["stage"], found["finished"], found["steps"]) == (None, True, 4)
    assert found["model"] == str(written / "model")


def test_folders_that_are_no_run(tmp_path):
    assert not is_run(tmp_path)
    (tmp_path / "model").mkdir()
    assert not is_run(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    assert is_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_record_is_named(tmp_path, text):
    assert read_record(tmp_path) is None
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: "):
        describe(tmp_path)


def test_what_a_killed_run_moved_aside_is_put_back_or_removed(tmp_path):
    for name in (
        "checkpoint-1",
        ".replaced-checkpoint-1",  # its new one is there
        ".unfinished-checkpoint-2",
        ".replaced-checkpoint-2",  # it is not
        ".replaced-model",
        ".unfinished-model",
        ".unfinished-checkpoint-3",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    restore_replaced(tmp_path)
    remove_unfinished(tmp_path)
    found = {path.name: [each.name for each in path.iterdir()] for path in tmp_path.iterdir()}
    assert found == {
        "checkpoint-1": ["checkpoint-1"],
        "checkpoint-2": [".replaced-checkpoint-2"],
        "model": [".replaced-model"],
    }
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    restore_replaced(tmp_path / "none")
