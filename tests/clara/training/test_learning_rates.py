"""Learning rates of adapters and rows of their own."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from clara.training.arguments import ClaraTrainingArguments
from clara.training.compression import CompressionObjective
from clara.training.folder import checkpoints, read_log
from clara.training.learning_rates import split_parameter_groups
from clara.training.run import run
from clara.training.settings import SettingsError, check_early, checked_learning_rates


@pytest.fixture
def settings(settings):
    return partial(settings, config={"lora_dropout": 0.0}, max_steps=2, save_steps=1)


def weights(folder):
    """What the three adapters and the rows hold, by the name of their group."""
    groups = ("compressor", "query_reasoner", "generator")
    found = {name: load_file(folder / name / "adapter_model.safetensors") for name in groups}
    return {**found, "memory_tokens": load_file(folder / "memory_tokens.safetensors")}


def distances(one, other):
    return {
        group: sum(float((value - other[group][name]).norm()) for name, value in values.items())
        for group, values in one.items()
    }


def test_a_rate_moves_its_group_and_no_other(settings):
    """One step of plain gradient descent goes as far as the rate says."""
    options = {"optim": "sgd", "learning_rate": 0.01, "max_steps": 1, "max_grad_norm": 0.0}
    start = weights(run("pretrain", settings("start", **{**options, "learning_rate": 0})).model)
    plain = distances(start, weights(run("pretrain", settings("plain", **options)).model))
    rates = {"generator": 0.03, "memory_tokens": 0}
    made = settings("own", **options, learning_rates=rates)
    own = distances(start, weights(run("pretrain", made).model))
    assert plain["generator"] > 0
    assert plain["compressor"] > 0
    assert own["generator"] == pytest.approx(3 * plain["generator"], rel=1e-3)
    assert own["compressor"] == pytest.approx(plain["compressor"], rel=1e-3)
    assert own["memory_tokens"] == own["query_reasoner"] == 0


def test_rates_follow_the_schedule_and_keep_the_decay(settings, tmp_path):
    rates = {"compressor": 2e-3, "generator": 4e-3}
    options = {"lr_scheduler_type": "linear", "weight_decay": 0.1, "max_steps": 4}
    run("pretrain", settings(learning_rates=rates, **options))
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if "loss" in r]
    for name, rate in ({"": 1e-2} | {f"_{n}": r for n, r in rates.items()}).items():
        logged = [record[f"learning_rate{name}"] for record in records]
        assert logged == pytest.approx([rate * left / 4 for left in (4, 3, 2, 1)])
    assert "learning_rate_memory_tokens" not in records[0]
    last = checkpoints(tmp_path / "run")[-1]
    groups = json.loads((last / "schedule.json").read_text(encoding="utf-8"))["groups"]
    assert [group.get("name") for group in groups] == [None, "compressor", "generator"]
    assert {group["weight_decay"] for group in groups} == {0.1}


def test_a_resumed_run_goes_on_with_its_rates(settings, tmp_path):
    rates = {"generator": 3e-2}
    steady = {"lr_scheduler_type": "constant", "learning_rates": rates}
    whole = weights(run("pretrain", settings("whole", max_steps=4, **steady)).model)
    run("pretrain", settings("parts", max_steps=2, **steady))
    parts = run("pretrain", settings("parts", max_steps=4, **steady), resume=True)
    for group, values in weights(parts.model).items():
        for name, value in values.items():
            torch.testing.assert_close(value, whole[group][name], rtol=1e-6, atol=1e-8)
    steady["learning_rates"] = {"generator": 1e-2}
    with pytest.raises(SettingsError, match=r"learning_rates is .*0\.01.*, the run has .*0\.03"):
        run("pretrain", settings("parts", max_steps=5, **steady), resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generators": 1}, r"learning_rates: 'generators' must be one of compressor, .*backbone$"),
        ({"generator": -1}, "learning_rates: generator must be a number of at least 0, got -1"),
        ({"generator": "fast"}, "learning_rates: generator must be a number .*got 'fast'"),
        ({"generator": float("nan")}, "learning_rates: generator must be a number"),
        ([1e-4], r"learning_rates must be a mapping from compressor, .* to numbers, got \[0"),
        (1e-4, "learning_rates must be a mapping"),
    ],
)
def test_rates_that_are_none(settings, given, message):
    with pytest.raises(SettingsError, match=message):
        check_early(settings(learning_rates=given))
    with pytest.raises(SettingsError, match=message):
        run("pretrain", settings(learning_rates=given))


def test_a_rate_that_yaml_reads_as_a_string(tmp_path):
    assert checked_learning_rates({"generator": "1e-4", "connector": None}) == {"generator": 1e-4}
    assert checked_learning_rates(None) == {}
    arguments = ClaraTrainingArguments(str(tmp_path), learning_rates={"backbone": "2e-5"})
    assert arguments.learning_rates == {"backbone": 2e-5}


def test_a_rate_for_what_does_not_train(settings):
    with pytest.raises(
        SettingsError,
        match="query_reasoner does not train in this stage; what trains is compressor, generator,",
    ):
        run("pretrain", settings(learning_rates={"query_reasoner": 1e-4}))


def test_an_optimizer_that_holds_something_else(make_model):
    objective = CompressionObjective(make_model())
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(SettingsError, match="learning_rates cannot be used with optim SGD"):
        split_parameter_groups(optimizer, {"generator": 1.0}, objective)
