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

# Runs stages with settings given as JSON; sleeps in every step so that it can be killed.
PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(1)
from clara.training.arguments import RunSettings
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


@pytest.mark.parametrize("stage", ["pretrain", "end-to-end"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny_backbone, training_data, tmp_path, stage):
    """Dropout, data order, schedule, optimizer and noise are where they were."""
    data = training_data / ("pretrain.jsonl" if stage == "pretrain" else "ranking.jsonl")
    extra = {}
    if stage == "end-to-end":
        extra = {"selection": [{"noise": "gumbel", "temperature": 0.5, "temperature_end": 0.1}]}
    whole = settings(tiny_backbone("llama"), data, tmp_path / "whole", **extra)
    run(stage, RunSettings(**whole))
    killed = settings(tiny_backbone("llama"), data, tmp_path / "killed", **extra)
    process = subprocess.Popen(
        command(tmp_path, [(stage, killed)], pause=0.2),
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
