"""Runs of two processes, which do what one does."""

import json
from importlib.util import find_spec

import pytest

from clara.training.folder import read_log
from clara.training.run import run
from clara.training.settings import RunSettings

from .runs import launched, losses, settings, weights

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
if find_spec("bitsandbytes"):
    RUNS["4-bit"] = ("pretrain", {"max_steps": 2})


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
def together(tiny_backbone, training_data, unusable_data, warm, tmp_path_factory):
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
        if name == "4-bit":
            config["quantization"] = "nf4"
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
    launched(folder, pairs, warm)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(together, name):
    """The same global batch gives the same weights, whoever computes it."""
    folder = together / name
    one, two = losses(folder / "one"), losses(folder / "two")
    tolerance = 1e-4 if name == "4-bit" else 1e-5
    assert two == pytest.approx(one, rel=tolerance)
    before, after = weights(folder / "one" / "model"), weights(folder / "two" / "model")
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        scale = float(value.norm()) or 1.0
        assert float((after[tensor] - value).norm()) <= tolerance * scale, tensor


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
