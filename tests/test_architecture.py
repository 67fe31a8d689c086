"""docs/architecture.md: the written part is what the code gives, and the walks are true."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from clara import Clara, ClaraConfig
from clara.data.records import read_documents
from clara.training.run import run
from clara.training.settings import RunSettings

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SETTINGS: dict[str, Any] = {
    "compression_rate": 16,
    "document_length": 64,
    "lora_rank": 4,
    "dtype": "float32",
}
TEXTS = [f"River {row} runs north for {row} miles." for row in range(4)]


def code_of(name: str) -> CodeType:
    """The code of a function, by its dotted name; decorators are looked through."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = inspect.getattr_static(found, part)
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        code: CodeType = inspect.unwrap(function).__code__
        return code
    raise AssertionError(f"no such function: {name}")


def walk(title: str) -> list[str]:
    """The functions that a walk names, in its order."""
    section = PAGE.split(f"### {title}\n")[1].split("\n### ")[0]
    return re.findall(r"`((?:clara|clara_kernels)(?:\.\w+)+)`", section)


def assert_in_order(names: list[str], action: Callable[[], object]) -> None:
    """Run `action` and look for calls of the named functions, each after the one before it."""
    left = [(name, code_of(name)) for name in names]

    def called(frame: Any, event: str, argument: object) -> None:
        if event == "call" and left and frame.f_code is left[0][1]:
            left.pop(0)

    sys.setprofile(called)
    try:
        action()
    finally:
        sys.setprofile(None)
    assert not left, f"not called at its place in the walk: {left[0][0]}"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "tests/data/reference/base").save_pretrained(folder)
    return folder


@pytest.fixture
def model(backbone):
    return Clara.from_backbone(backbone, ClaraConfig(**SETTINGS), device="cpu")


@pytest.fixture
def new_index(tmp_path):
    """A function from a model to an empty index for its memory."""
    from clara.index import MemoryIndex

    def make(model):
        return MemoryIndex.create(
            tmp_path / "index",
            fingerprint=model.fingerprint,
            memory_tokens=model.config.memory_tokens,
            hidden_size=model.hidden_size,
            dtype=model.dtype,
        )

    return make


def test_the_picture_is_that_of_the_code():
    subprocess.run([sys.executable, ROOT / "docs/architecture_page.py", "--check"], check=True)


def test_a_document_into_memory(model, new_index, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"id": str(row), "contents": text}) for row, text in enumerate(TEXTS)]
    corpus.write_text("\n".join(rows))
    index = new_index(model)
    assert_in_order(
        walk("A document into memory"),
        lambda: index.add(model.compress(list(read_documents(corpus)))),
    )


def test_a_question_to_an_answer(model, new_index):
    index = new_index(model)
    index.add(model.compress(TEXTS))
    names = walk("A question to an answer")
    assert_in_order(names, lambda: model.answer(["Which runs north?"], index, max_new_tokens=2))


def test_a_training_step(backbone, tmp_path):
    data = tmp_path / "questions.jsonl"
    rows = [
        {"question": "Where?", "docs": TEXTS, "pos_index": [row], "answer": "north"}
        for row in range(len(TEXTS))
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    settings = RunSettings(
        model=None,
        backbone=str(backbone),
        config={**SETTINGS, "top_k": 2},
        train_data=str(data),
        eval_data=None,
        train_split="train",
        eval_split="validation",
        arguments={
            "output_dir": str(tmp_path / "run"),
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "report_to": "none",
        },
    )
    names = walk("A training step, end to end")
    assert_in_order(names, lambda: run("end-to-end", settings))
