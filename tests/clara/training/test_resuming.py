"""Runs that are killed and go on, and runs of two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara.training.folder import checkpoints, read_log
from clara.training.resuming import _compare_batches, _other_curve, check_backbone
from clara.training.run import run
from clara.training.settings import RunSettings, SettingsError

CURRICULUM = [
    {"until": 4, "text_tokens": 5, "reconstruction": 1.0},
    {"text_tokens": 8, "reconstruction": [1.0, 0.2]},
]

# Runs stages with settings given as JSON; sleeps in every step so that it can be killed.
PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(1)
from clara.training.settings import RunSettings
from clara.training.run import run
from clara.training.objectives import Objective
pause, runs = json.loads(sys.argv[1])
forward = Objective.forward
def slow(self, batch):
    time.sleep(pause)
    return forward(self, batch)
Objective.forward = slow
for stage, values in runs:
    run(stage, RunSettings(**values))
"""


def settings(backbone, data, folder, *, config=None, model=None, **arguments):
    small = {"compression_rate": 16, "document_length": 64, "lora_rank": 4, "top_k": 2}
    return {
        "model": model,
        "backbone": None if model else str(backbone),
        "config": {**({} if model else small), **(config or {})},
        "train_data": str(data),
        "eval_data": None,
        "train_split": "train",
        "eval_split": "validation",
        "arguments": {
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 3,
            "report_to": "none",
            "disable_tqdm": True,
            **arguments,
        },
    }


def command(folder, runs, *launcher, pause=0.0):
    """Arguments of a Python that runs `runs`, each a stage and its settings."""
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    return [sys.executable, *launcher, str(program), json.dumps([pause, runs])]


def weights(folder):
    return {
        f"{file.parent.name}:{name}": value
        for file in sorted(Path(folder).rglob("*.safetensors"))
        if "optimizer" not in file.name and "random" not in file.name
        for name, value in load_file(file).items()
    }


def losses(folder):
    return {r["step"]: r["loss"] for r in read_log(Path(folder) / "log.jsonl") if "loss" in r}


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
    tiny_backbone, training_data, tmp_path, stage, extra
):
    """Dropout, data order, schedule, optimizer, noise and curriculum are where they were."""
    data = training_data / ("pretrain.jsonl" if stage == "pretrain" else "ranking.jsonl")
    whole = settings(tiny_backbone("llama"), data, tmp_path / "whole", **extra)
    run(stage, RunSettings(**whole))
    killed = settings(tiny_backbone("llama"), data, tmp_path / "killed", **extra)
    process = subprocess.Popen(
        command(tmp_path, [(stage, killed)], pause=0.2),
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
        process.send_signal(signal.SIGKILL)
        process.wait()
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
        ({"config": {"dtype": "bfloat16"}}, r"dtype is bfloat16, the run has null"),
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


RUNS = {  # stage, settings
    "pretrain": ("pretrain", {}),
    "checkpointing": ("pretrain", {"gradient_checkpointing": True}),
    "end-to-end": ("end-to-end", {}),
    "contrastive": ("contrastive", {}),
    "unusable": (
        "pretrain",
        {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "train_sampling_strategy": "sequential",
            "max_prompt_tokens": 200,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": 1,
        },
    ),
}


@pytest.fixture(scope="module")
def unusable_data(training_data, tmp_path_factory):
    """Files for training and evaluation, of which every second example is over the budget."""
    folder = tmp_path_factory.mktemp("unusable")
    rows = [json.loads(row) for row in (training_data / "pretrain.jsonl").open(encoding="utf-8")]
    for row in rows[1::2]:
        row["answers"][0] = "a long answer " * 50
    files = folder / "rows.jsonl", folder / "evaluation.jsonl"
    for file, part in zip(files, (rows, rows[:7])):
        file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def together(tiny_backbone, training_data, unusable_data, tmp_path_factory):
    """Folder with RUNS of one process and of two that have the same global batch.

    The two are started once for all: each run takes seconds, and so does each start.
    """
    folder, pairs = tmp_path_factory.mktemp("together"), []
    for name, (stage, options) in RUNS.items():
        data, evaluation = training_data / "ranking.jsonl", None
        if stage == "pretrain":
            data = training_data / "pretrain.jsonl"
        if name == "unusable":
            data, evaluation = map(str, unusable_data)
        common = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4, **options}
        size = 2 * common.get("per_device_train_batch_size", 2)
        config = {"lora_dropout": 0.0, "temperature": 0.5}
        pair = [
            settings(tiny_backbone("llama"), data, folder / name / each, config=config, **given)
            for each, given in (
                ("one", {**common, "per_device_train_batch_size": size}),
                ("two", {**common, "use_cpu": True}),
            )
        ]
        for each in pair:
            each["eval_data"] = evaluation
        run(stage, RunSettings(**pair[0]))
        pairs.append((stage, pair[1]))
    launched(folder, pairs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(together, name):
    """The same global batch gives the same weights, whoever computes it."""
    folder = together / name
    one, two = losses(folder / "one"), losses(folder / "two")
    assert two == pytest.approx(one, rel=1e-5)
    before, after = weights(folder / "one" / "model"), weights(folder / "two" / "model")
    assert before.keys() == after.keys()
    for name, value in before.items():
        scale = float(value.norm()) or 1.0
        assert float((after[name] - value).norm()) <= 1e-5 * scale, name


@pytest.mark.slow
def test_a_process_without_usable_examples_takes_part(together):
    """Every second example is over the budget, so that one process never has any other."""
    logs = [read_log(together / "unusable" / name / "log.jsonl") for name in ("one", "two")]
    counted = [[r["prompt over the budget"] for r in log if "loss" in r] for log in logs]
    assert counted == [[1, 2, 3, 4]] * 2
    scores = [[r["eval_ce"] for r in log if "eval_ce" in r] for log in logs]
    assert len(scores[0]) == 2
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # of 7 examples, none of them twice
    assert [r["eval_prompt over the budget"] for r in logs[1] if "eval_ce" in r] == [3, 3]


def launched(folder, runs):
    """Run with two processes over gloo."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run(
        command(folder, runs, *launcher),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
