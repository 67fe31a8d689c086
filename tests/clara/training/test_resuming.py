"""Runs that are killed and go on, and settings that may change then."""

import shutil
import subprocess
import time

import pytest
import torch

from clara.training.folder import checkpoints
from clara.training.resuming import _compare_batches, _other_curve, check_backbone
from clara.training.run import run
from clara.training.settings import RunSettings, SettingsError

from ...plugins.warm import kill
from .runs import command, losses, settings, weights

CURRICULUM = [
    {"until": 4, "text_tokens": 5, "reconstruction": 1.0},
    {"text_tokens": 8, "reconstruction": [1.0, 0.2]},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "extra"),
    [
        ("pretrain", {}),
        ("pretrain", {"curriculum": CURRICULUM, "learning_rates": {"generator": 2e-2}}),
        (
            "end-to-end",
            {"selection": [{"noise": "gumbel", "temperature": 0.5, "temperature_end": 0.1}]},
        ),
    ],
    ids=["pretrain", "curriculum", "end-to-end"],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tiny_backbone, training_data, warm, tmp_path, stage, extra
):
    """Dropout, data order, schedule, optimizer, noise and curriculum are where they were."""
    data = training_data / ("pretrain.jsonl" if stage == "pretrain" else "ranking.jsonl")
    whole = settings(tiny_backbone("llama"), data, tmp_path / "whole", **extra)
    run(stage, RunSettings(**whole))
    killed = settings(tiny_backbone("llama"), data, tmp_path / "killed", **extra)
    process = subprocess.Popen(
        command(tmp_path, [(stage, killed)], warm().python, pause=0.2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while len(checkpoints(tmp_path / "killed")) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)  # into the steps after the checkpoint
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        kill(process)
    done = checkpoints(tmp_path / "killed")
    assert 2 <= len(done) < 4
    (tmp_path / "killed" / ".unfinished-checkpoint-99").mkdir()
    outcome = run(stage, RunSettings(**killed), resume=True)
    assert outcome.steps == 12
    assert not list((tmp_path / "killed").glob(".unfinished-*"))
    before, after = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert list(after) == list(range(1, 13))
    assert after == pytest.approx(before, rel=1e-5)
    for name, value in weights(tmp_path / "whole" / "model").items():
        torch.testing.assert_close(
            weights(tmp_path / "killed" / "model")[name], value, rtol=1e-5, atol=1e-7
        )


def test_resuming_without_a_checkpoint_starts(tiny_backbone, training_data, tmp_path):
    values = settings(
        tiny_backbone("llama"), training_data / "pretrain.jsonl", tmp_path / "run", max_steps=2
    )
    assert run("pretrain", RunSettings(**values), resume=True).steps == 2


@pytest.mark.parametrize("damage", ["optimizer.safetensors", "schedule.json", "random_0.json"])
def test_a_damaged_checkpoint_is_named(tiny_backbone, training_data, tmp_path, damage):
    values = settings(
        tiny_backbone("llama"), training_data / "pretrain.jsonl", tmp_path / "run", max_steps=3
    )
    run("pretrain", RunSettings(**values))
    (last,) = checkpoints(tmp_path / "run")
    (last / damage).write_bytes(b"{ not what it was")
    values["arguments"]["max_steps"] = 6
    with pytest.raises(ValueError, match=str(last)):
        run("pretrain", RunSettings(**values), resume=True)


@pytest.fixture(scope="module")
def resumed(tiny_backbone, training_data, tmp_path_factory):
    """A function that resumes a copy of a run of two steps with changes; gives what was said."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copy(training_data / "pretrain.jsonl", folder / "data.jsonl")
    first = settings(
        tiny_backbone("llama"),
        folder / "data.jsonl",
        folder / "first",
        max_steps=2,
        lr_scheduler_type="constant",
        gradient_accumulation_steps=1,
        per_device_train_batch_size=4,
    )
    run("pretrain", RunSettings(**first))

    def go(*, stage="pretrain", config=None, edit=None, **changes):
        again = tmp_path_factory.mktemp("again") / "run"
        shutil.copytree(folder / "first", again)
        if edit is not None:
            edit(checkpoints(again)[-1])
        values = {
            **first,
            "config": {**first["config"], **(config or {})},
            **{n: v for n, v in changes.items() if n in first},
            "arguments": {
                **first["arguments"],
                "output_dir": str(again),
                "max_steps": 3,
                **{n: v for n, v in changes.items() if n not in first},
            },
        }
        return run(stage, RunSettings(**values), resume=True)

    go.folder = folder
    return go


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "sgd"}, r"optim is sgd, the run has adamw_torch"),
        ({"learning_rate": 0.5}, r"learning_rate is 0\.5, the run has 0\.01"),
        ({"lr_scheduler_type": "cosine"}, r"lr_scheduler_type is cosine, the run has constant"),
        ({"seed": 7}, r"seed is 7, the run has 42"),
        ({"weight_decay": 0.1}, r"weight_decay is 0\.1, the run has 0\.0"),
        ({"alignment_weight": 0.5}, r"alignment_weight is 0\.5, the run has 0\.1"),
        ({"bf16": True, "use_cpu": True}, r"bf16 is true, the run has false"),
        ({"config": {"lora_rank": 8}}, r"lora_rank is 8, the run has 4"),
        ({"config": {"lora_dropout": 0.0}}, r"lora_dropout is 0\.0, the run has 0\.1"),
        ({"config": {"dtype": "bfloat16"}}, r"dtype is bfloat16, the run has auto"),
        (
            {"per_device_train_batch_size": 2},
            r"per_device_train_batch_size is 2, the run has 4[.;]",
        ),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            r"gradient_accumulation_steps is 4, the run has 1; per_device_train_batch_size is 2",
        ),
        ({"seed": 7, "optim": "sgd"}, r"optim is sgd.*; seed is 7"),
        ({"max_steps": 1}, r"the run has done 2 steps, max_steps is 1"),
        ({"stage": "text"}, r"stage is text, the run has pretrain"),
    ],
)
def test_what_contradicts_a_run_is_refused_before_a_model_is_loaded(
    resumed, monkeypatch, changes, message
):
    monkeypatch.setattr("clara.training.run._model", lambda *arguments: pytest.fail("was loaded"))
    if changes.get("stage") == "text":
        changes = {**changes, "train_data": str(resumed.folder / "ranking.jsonl")}
        shutil.copy(resumed.folder / "data.jsonl", resumed.folder / "ranking.jsonl")
    with pytest.raises(SettingsError, match=f"cannot be resumed with other settings: .*{message}"):
        resumed(**changes)


def test_other_data_is_told_by_its_content(resumed, capsys):
    data = resumed.folder / "data.jsonl"
    rows = data.read_text(encoding="utf-8")
    moved = resumed.folder / "moved.jsonl"
    moved.write_text(rows, encoding="utf-8")
    assert resumed(train_data=str(moved)).steps == 3
    assert f"train_data {data} -> {moved}" in " ".join(capsys.readouterr().err.split())
    other = rows.replace("Ayr", "Ulm")
    try:
        data.write_text(other, encoding="utf-8")
        with pytest.raises(
            SettingsError, match=r"train_data is .*data\.jsonl \(24 examples, .*the run has .*24 ex"
        ):
            resumed()
    finally:
        data.write_text(rows, encoding="utf-8")


def test_what_may_change_is_said(resumed, capsys):
    outcome = resumed(
        logging_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    assert outcome.steps == 3
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("resuming at step 2 of 3; changed: ")
    changed = line.partition("changed: ")[2].split(", ")
    assert set(changed) == {
        "gradient_accumulation_steps 1 -> 2",
        "per_device_train_batch_size 4 -> 2",
        "max_steps 2 -> 3",
        "logging_steps 1 -> 2",
        "save_steps 3 -> 1",
    }


def test_a_run_that_is_done_says_so(resumed, capsys):
    assert resumed(max_steps=2).steps == 2
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == "resuming at step 2 of 2"
    assert second == "all steps are done already, nothing is left to train"


def test_a_checkpoint_that_does_not_record_its_settings(resumed, capsys):
    def old(checkpoint):
        (checkpoint / "run.json").unlink()

    assert resumed(edit=old).steps == 3
    assert "checkpoint-2 does not record the settings of its run" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="lora_rank is 8, the run has 4"):
        resumed(edit=old, config={"lora_rank": 8})
    with pytest.raises(SettingsError, match="per_device_train_batch_size is 2, the run has 4"):
        resumed(edit=old, per_device_train_batch_size=2)
    with pytest.raises(ValueError, match="holds the state of another optimizer than SGD"):
        resumed(edit=old, optim="sgd")


def test_a_damaged_record_is_named(resumed):
    def cut(checkpoint):
        (checkpoint / "run.json").write_text('{"stage": "pretrain"}', encoding="utf-8")

    with pytest.raises(SettingsError, match=r"checkpoint-2/run\.json: lacks 'arguments'"):
        resumed(edit=cut)


def test_more_steps_of_a_schedule_that_ends_are_explained(tmp_path):
    before = {"max_steps": 10}
    for arguments, said in (
        ({"lr_scheduler_type": "cosine", "warmup_steps": 0}, "lr_scheduler_type cosine"),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}, "constant_with_warm"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0, "selection": [{}]}, "selection's"),
    ):
        (line,) = _other_curve(before, {"max_steps": 20, "arguments": arguments})
        assert said in line
        assert "20 steps" in line
        assert "one of 10" in line
    steady = {"lr_scheduler_type": "constant", "warmup_steps": 5}
    assert _other_curve(before, {"max_steps": 20, "arguments": steady}) == []


def test_another_backbone_is_told_by_its_digest():
    def record(place, digest):
        return {"backbone": {"given": place, "path": place}, "backbone_digest": digest}

    check_backbone(None, record("a", "1"))
    check_backbone(record("a", "1"), record("a", "2"))  # an index of its own says that
    check_backbone(record("a", "1"), record("b", "1"))
    with pytest.raises(
        SettingsError, match=r"backbone is b \(digest 2\), the run has a \(digest 1"
    ):
        check_backbone(record("a", "1"), record("b", "2"))


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ((4, 1, 2), (4, 2, 1), True),
        ((4, 1, 2), (8, 1, 1), True),
        ((4, 2, 1), (4, 1, 2), False),  # a second process has no random numbers to go on with
        ((4, 1, 2), (4, 1, 1), False),
    ],
)
def test_batches_may_be_divided_otherwise(before, now, same):
    def record(size, accumulated, processes):
        arguments = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulated,
        }
        return {"arguments": arguments, "processes": processes, "steps_of_an_epoch": 5}

    contradictions, changes = [], []
    _compare_batches(record(*before), record(*now), contradictions, changes)
    assert bool(contradictions) is not same
    assert bool(changes) is same
