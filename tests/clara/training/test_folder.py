"""What the folder of a run tells without torch."""

import json

import pytest

from clara.training.folder import describe, is_run, read_record, write_record


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
        "loss": 0.5,
        "scores": {"eval_loss": 1.25, "eval_ce": 1.0},
        "train_data": "a.jsonl",
        "model": None,
        "last_checkpoint": str(written / "checkpoint-3"),
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
