"""Runs that are killed and go on, and runs of two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara.training.arguments import RunSettings
from clara.training.callbacks import read_log
from clara.training.run import run
from clara.training.trainer import checkpoints

# Runs a stage with settings given as JSON; sleeps in every step so that it can be killed.
PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(1)
from clara.training.arguments import RunSettings
from clara.training.run import run
from clara.training.objectives import Objective
values = json.loads(sys.argv[1])
pause, resume, stage = values.pop("pause"), values.pop("resume"), values.pop("stage")
forward = Objective.forward
def slow(self, batch):
    time.sleep(pause)
    return forward(self, batch)
Objective.forward = slow
run(stage, RunSettings(**values), resume=resume)
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


def command(program, values, *launcher):
    return [sys.executable, *launcher, str(program), json.dumps(values)]


def weights(folder):
    return {
        f"{file.parent.name}:{name}": value
        for file in sorted(Path(folder).rglob("*.safetensors"))
        if "optimizer" not in file.name and "random" not in file.name
        for name, value in load_file(file).items()
    }


def losses(folder):
    return {r["step"]: r["loss"] for r in read_log(Path(folder) / "log.jsonl") if "loss" in r}


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    return file


@pytest.mark.parametrize("stage", ["pretrain", "end-to-end"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tiny_backbone, training_data, tmp_path, program, stage
):
    """Dropout, data order, schedule, optimizer and noise are where they were."""
    data = training_data / ("pretrain.jsonl" if stage == "pretrain" else "ranking.jsonl")
    extra = {}
    if stage == "end-to-end":
        extra = {"selection": [{"noise": "gumbel", "temperature": 0.5, "temperature_end": 0.1}]}
    whole = settings(tiny_backbone("llama"), data, tmp_path / "whole", **extra)
    run(stage, RunSettings(**whole))
    killed = settings(tiny_backbone("llama"), data, tmp_path / "killed", **extra)
    process = subprocess.Popen(
        command(program, {**killed, "stage": stage, "pause": 0.2, "resume": False}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
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


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("pretrain", {}),
        ("pretrain", {"gradient_checkpointing": True}),
        ("end-to-end", {}),
        ("contrastive", {}),
    ],
)
def test_two_processes_are_one(tiny_backbone, training_data, tmp_path, program, stage, options):
    """The same global batch gives the same weights, whoever computes it."""
    data = training_data / ("pretrain.jsonl" if stage == "pretrain" else "ranking.jsonl")
    alone_and_together(tiny_backbone("llama"), data, tmp_path, program, stage, **options)


def test_a_process_without_usable_examples_takes_part(
    tiny_backbone, training_data, tmp_path, program
):
    """Every second example is over the budget, so that one process never has any other."""
    rows = [json.loads(row) for row in (training_data / "pretrain.jsonl").open(encoding="utf-8")]
    for row in rows[1::2]:
        row["answers"][0] = "a long answer " * 50
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    odd = tmp_path / "evaluation.jsonl"
    odd.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]), encoding="utf-8")
    alone_and_together(
        tiny_backbone("llama"),
        data,
        tmp_path,
        program,
        "pretrain",
        evaluation=odd,
        eval_strategy="steps",
        eval_steps=2,
        train_sampling_strategy="sequential",
        max_prompt_tokens=200,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=1,
    )
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    counted = [[r["prompt over the budget"] for r in log if "loss" in r] for log in logs]
    assert counted == [[1, 2, 3, 4]] * 2
    scores = [[r["eval_ce"] for r in log if "eval_ce" in r] for log in logs]
    assert len(scores[0]) == 2
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # of 7 examples, none of them twice
    assert [r["eval_prompt over the budget"] for r in logs[1] if "eval_ce" in r] == [3, 3]


def alone_and_together(backbone, data, folder, program, stage, evaluation=None, **options):
    """Compare a run of one process with one of two that has the same global batch."""
    common = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4, **options}
    size = 2 * common.get("per_device_train_batch_size", 2)
    made = [
        settings(
            backbone, data, folder / name, config={"lora_dropout": 0.0, "temperature": 0.5}, **given
        )
        for name, given in (
            ("one", {**common, "per_device_train_batch_size": size}),
            ("two", common),
        )
    ]
    for each in made:
        each["eval_data"] = evaluation and str(evaluation)
    run(stage, RunSettings(**made[0]))
    launched(program, {**made[1], "stage": stage, "pause": 0, "resume": False})
    one, two = losses(folder / "one"), losses(folder / "two")
    assert two == pytest.approx(one, rel=1e-5)
    before, after = weights(folder / "one" / "model"), weights(folder / "two" / "model")
    assert before.keys() == after.keys()
    for name, value in before.items():
        scale = float(value.norm()) or 1.0
        assert float((after[name] - value).norm()) <= 1e-5 * scale, name


def launched(program, values):
    """Run with two processes over gloo."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    values["arguments"]["use_cpu"] = True
    done = subprocess.run(
        command(program, values, *launcher),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
