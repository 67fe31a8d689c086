"""Settings: what is refused, and how they are stored."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from clara.config import DEFAULT_PROMPT, FORMAT_VERSION, ClaraConfig, PromptTemplate

INTEGERS = ("compression_rate", "document_length", "lora_rank", "lora_alpha", "top_k")
BAD = [
    *((name, value, TypeError) for name in INTEGERS for value in (True, 2.0, "4", None, [4])),
    *((name, value, ValueError) for name in INTEGERS for value in (0, -1)),
    ("compression_rate", 3, ValueError),
    ("compression_rate", 512, ValueError),
    ("document_length", 250, ValueError),
    *(("distinct_memory_tokens", value, TypeError) for value in (1, 0, None, "true")),
    ("span_slope", 0.1, ValueError),  # of memory form "learned"
    *(("span_slope", value, ValueError) for value in (-0.1, 1.5, float("nan"))),
    *(("span_slope", value, TypeError) for value in (False, None, "0.1")),
    *(("separator", value, TypeError) for value in (1, 0, None, "false")),
    *(("lora_dropout", value, ValueError) for value in (-0.1, 1, 1.5, float("nan"))),
    *(("lora_dropout", value, TypeError) for value in (False, None, "0.1")),
    *(
        ("temperature", value, ValueError)
        for value in (0, -1.0, float("inf"), float("nan"), float("-inf"))
    ),
    *(("temperature", value, TypeError) for value in (True, None, "0.02")),
    *(("overflow", value, ValueError) for value in ("split", None, "", ["chunk"])),
    *(("relaxation", value, ValueError) for value in ("entmax", None)),
    *(("mask", value, ValueError) for value in ("leak", None)),
    *(("noise", value, ValueError) for value in ("uniform", False, "null")),
    *(("quantization", value, ValueError) for value in ("int4", False, "NF4")),
    *(("attention", value, ValueError) for value in ("eager", None)),
    *(("dtype", value, ValueError) for value in ("float64", "torch.float32", 32)),
    *(("backbone", value, TypeError) for value in (3, ["a"], False)),
    ("backbone_digest", 3, TypeError),
    *(("prompt", value, TypeError) for value in ("Question: {question}", None, ("a", "b"))),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_a_wrong_value_is_named_with_its_setting(name, value, error):
    with pytest.raises(error) as caught:
        ClaraConfig(**{name: value})
    message = str(caught.value)
    assert name in message
    assert str(value) in message
    with pytest.raises(error, match=name):
        ClaraConfig().replace(**{name: value})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"system": "a"}, "prompt must have 'system' and 'user', got {'system': 'a'}"),
        ({"system": "", "user": "{memory}{question}", "x": 1}, "prompt must have 'system'"),
        ({"system": "", "user": "{memory}"}, "prompt.user must contain {question} exactly once"),
        ({"system": "", "user": "{question}{memory}"}, "must have {memory} before {question}"),
        ({"system": None, "user": "{memory}{question}"}, "prompt.system must be a string"),
        ({"system": "", "user": 7}, "prompt.user must be a string, got 7"),
    ],
)
def test_a_wrong_prompt_is_explained(prompt, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        ClaraConfig(prompt=prompt)


def test_memory_tokens_follow_from_rate_and_length():
    assert ClaraConfig().memory_tokens == 16
    assert ClaraConfig(compression_rate=256).memory_tokens == 1
    assert ClaraConfig(compression_rate=1, document_length=7).memory_tokens == 7


FULL = ClaraConfig(
    backbone="some/model",
    backbone_digest="00ff",
    memory_form="spans",
    compression_rate=4,
    rates=(2, 4),
    question_rate=2,
    connector_rank=3,
    span_slope=0.5,
    ranking="mean",
    document_length=64,
    distinct_memory_tokens=False,
    separator=False,
    lora_rank=8,
    lora_alpha=9,
    lora_dropout=0.0,
    prompt=PromptTemplate(system="Ünïcode “quotes”\n", user="{memory} ? {question} {other}"),
    overflow="truncate",
    top_k=2,
    temperature=1,
    relaxation="sparsemax",
    mask="reference",
    noise="gumbel",
    quantization="nf4",
    dtype="bfloat16",
    attention="flash_attention_2",
)


@pytest.mark.parametrize("config", [ClaraConfig(), FULL])
def test_what_is_saved_is_what_is_loaded(config, tmp_path):
    file = tmp_path / "config.json"
    config.save(file)
    assert ClaraConfig.load(file) == config
    assert ClaraConfig.load(str(file)) == config
    assert ClaraConfig.from_dict(json.loads(file.read_text("utf-8"))) == config


def test_the_full_configuration_has_no_default():
    defaults = ClaraConfig()
    assert all(
        getattr(FULL, name) != getattr(defaults, name)
        for name in FULL.to_dict().keys() - {"clara_format"}
    )


def test_reading_leaves_its_argument_alone():
    values = FULL.to_dict()
    before = json.dumps(values)
    ClaraConfig.from_dict(values)
    assert json.dumps(values) == before


def test_replace_validates_and_leaves_the_original():
    changed = FULL.replace(top_k=9, prompt=DEFAULT_PROMPT)
    assert (changed.top_k, changed.prompt) == (9, DEFAULT_PROMPT)
    assert FULL.top_k == 2
    assert changed.replace(top_k=2, prompt=FULL.prompt) == FULL
    with pytest.raises(ValueError, match=r"unknown setting 'topk'; settings are .*'top_k'"):
        FULL.replace(topk=9)
    with pytest.raises(ValueError, match="compression_rate 5 does not divide document_length 64"):
        ClaraConfig(document_length=64).replace(compression_rate=5)
    assert set(FULL.model_fields) <= FULL.to_dict().keys()


def test_numbers_of_numpy_are_kept_as_pythons_own(tmp_path):
    given = ClaraConfig(
        compression_rate=np.int64(8),
        document_length=np.int32(64),
        lora_rank=np.uint8(4),
        top_k=np.int16(3),
        temperature=np.float32(0.5),
        lora_dropout=np.int64(0),
    )
    assert given == ClaraConfig(
        compression_rate=8,
        document_length=64,
        lora_rank=4,
        top_k=3,
        temperature=0.5,
        lora_dropout=0.0,
    )
    for name in ("compression_rate", "document_length", "lora_rank", "top_k"):
        assert type(getattr(given, name)) is int
    for name in ("temperature", "lora_dropout"):
        assert type(getattr(given, name)) is float
    given.save(tmp_path / "config.json")
    assert ClaraConfig.load(tmp_path / "config.json") == given
    assert type(given.replace(top_k=np.int64(7)).top_k) is int


@pytest.mark.parametrize("name", ["top_k", "lora_rank", "document_length"])
@pytest.mark.parametrize("value", [True, np.True_, 4.0, np.float32(4)])
def test_what_is_no_integer(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
        ClaraConfig(**{name: value})


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_of_torch_is_kept_by_name(name, tmp_path):
    config = ClaraConfig(dtype=getattr(torch, name))
    assert config == ClaraConfig(dtype=name)
    assert type(config.dtype) is str
    config.save(tmp_path / "config.json")
    assert ClaraConfig.load(tmp_path / "config.json") == config
    assert ClaraConfig().replace(dtype=getattr(torch, name)) == config


def test_new_models_leave_the_dtype_to_the_machine_and_saved_ones_stay_as_they_were():
    values = ClaraConfig().to_dict()
    assert values["dtype"] == "auto"
    assert ClaraConfig.from_dict({**values, "dtype": None}).dtype is None
    del values["dtype"]
    assert ClaraConfig.from_dict(values).dtype is None


def test_other_dtypes_are_refused():
    message = "dtype must be one of null, auto, float32, bfloat16, float16; got 'int8'"
    with pytest.raises(ValueError, match=message):
        ClaraConfig(dtype=torch.int8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the configuration"),
        ("", "cannot read the configuration"),
        (b"\xff\xfe{}", "cannot read the configuration"),
        ("[]", "not a CLaRa configuration: not a JSON object"),
        ("3", "not a CLaRa configuration: not a JSON object"),
        ("{}", "not a CLaRa configuration: 'clara_format' is missing"),
        ('{"model_type": "llama"}', "not a CLaRa configuration: 'clara_format' is missing"),
        (
            json.dumps({"clara_format": FORMAT_VERSION + 1}),
            f"clara_format {FORMAT_VERSION + 1} is not supported; this version reads 1",
        ),
        ('{"clara_format": "1"}', "clara_format '1' is not supported"),
        ('{"clara_format": 1, "memory": 3}', "unknown setting 'memory'"),
        ('{"clara_format": 1, "top_k": "5"}', "top_k must be an integer, got '5'"),
        ('{"clara_format": 1, "temperature": NaN}', "temperature must be a positive number"),
        ('{"clara_format": 1, "prompt": {"system": ""}}', "prompt must have 'system' and 'user'"),
    ],
)
def test_a_damaged_file_is_named(content, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ClaraConfig.load(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json: cannot read the configuration"):
        ClaraConfig.load(tmp_path / "nowhere.json")
