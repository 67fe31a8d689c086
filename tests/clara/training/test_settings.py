"""Settings that are checked before torch is imported."""

import dataclasses

import pytest
from transformers import TrainingArguments

from clara import ClaraConfig
from clara.training.arguments import ClaraTrainingArguments
from clara.training.reading import _declared, model_settings, trainer_settings
from clara.training.settings import (
    NUMBERS,
    STAGES,
    SettingsError,
    check_numbers,
)
from clara.training.stages import ASSEMBLY


def test_every_stage_can_be_run():
    assert tuple(ASSEMBLY) == STAGES


def names(kind):
    return {f.name for f in dataclasses.fields(kind) if f.init}


def test_names_read_from_sources_are_those_of_the_classes():
    assert _declared("transformers", "training_args.py", "TrainingArguments") == names(
        TrainingArguments
    )
    assert trainer_settings() == names(ClaraTrainingArguments)
    assert model_settings() == names(ClaraConfig) - {"backbone"}


def test_without_sources_the_classes_are_asked(monkeypatch):
    monkeypatch.setattr("clara.training.reading._declared", lambda *arguments: frozenset())
    assert trainer_settings() == names(ClaraTrainingArguments)
    assert model_settings() == names(ClaraConfig) - {"backbone"}


def test_defaults_are_accepted():
    assert NUMBERS.keys() - names(ClaraTrainingArguments) == set()
    check_numbers({f.name: f.default for f in dataclasses.fields(ClaraTrainingArguments)})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_steps", 0, "a whole number of at least 1, or -1 to train num_train_epochs"),
        ("max_steps", -5, "a whole number of at least 1"),
        ("num_train_epochs", 0, "a number above 0"),
        ("num_train_epochs", float("inf"), "a number above 0"),
        ("learning_rate", -1e-4, "a number of at least 0"),
        ("learning_rate", float("nan"), "a number of at least 0"),
        ("learning_rate", True, "a number"),
        ("learning_rate", "fast", "a number"),
        ("gradient_accumulation_steps", 0, "a whole number of at least 1"),
        ("per_device_train_batch_size", 0, "a whole number of at least 1"),
        ("per_device_eval_batch_size", -1, "a whole number of at least 1"),
        ("total_batch_size", 2.5, "a whole number"),
        ("adam_beta2", 1, "a number of at least 0 and below 1"),
        ("weight_decay", -0.1, "a number of at least 0"),
        ("warmup_steps", -1, "a number of at least 0"),
        ("logging_steps", 0, "a number above 0"),
        ("save_total_limit", -2, "a whole number of at least 0"),
        ("seed", -1, "a whole number of at least 0 and at most 4294967295"),
        ("data_seed", 2**32, "a whole number of at least 0 and at most 4294967295"),
    ],
)
def test_numbers_that_no_run_can_have(name, value, allowed, tmp_path):
    with pytest.raises(SettingsError, match=f"^{name} must be {allowed}") as caught:
        check_numbers({name: value})
    assert repr(value) in str(caught.value)
    if not isinstance(value, str | bool):
        with pytest.raises(SettingsError, match=f"^{name} must be "):
            ClaraTrainingArguments(output_dir=str(tmp_path), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_steps", -1), ("learning_rate", "1e-4"), ("seed", 1e1), ("eval_steps", 0.1)],
)
def test_numbers_that_a_run_can_have(name, value):
    check_numbers({name: value})
