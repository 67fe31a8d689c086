"""`clara.json`: what it says, and that damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma3TextConfig

from clara import ClaraConfig
from clara.config import PromptTemplate
from clara.integrations.description import ExportError, describe, read, write

from .. import new_models

CONFIG = ClaraConfig(document_length=64, lora_rank=4, dtype="float32")


def new_model(folder, config=CONFIG):
    return new_models.new_model(Path(folder), config, "cpu")


@pytest.fixture
def described(tiny_model):
    return describe(tiny_model, torch.bfloat16)


def test_what_it_says_of_memory(tiny_model, tiny_backbone, described):
    shown = {name: described[name] for name in ("memory_form", "memory_tokens", "rates", "ranking")}
    assert shown == {
        "memory_form": "learned",
        "memory_tokens": 4,
        "rates": None,
        "ranking": "flattened",
    }
    assert described["fingerprint"] == tiny_model.fingerprint
    assert described["backbone_digest"] == tiny_model.backbone_digest
    assert (described["hidden_size"], described["dtype"]) == (48, "bfloat16")
    assert (described["positions"], described["embedding_scale"]) == (2048, 1.0)
    assert described["backbone"] == Path(tiny_model.config.backbone).name

    config = CONFIG.replace(memory_form="spans", span_slope=0.1, rates=(1, 4, 16), separator=False)
    spans = describe(new_model(tiny_backbone("llama"), config), torch.float32)
    names = ("memory_form", "memory_tokens", "rates", "question_rate", "span_slope", "ranking")
    assert [spans[name] for name in names] == ["spans", None, [1, 4, 16], 1, 0.1, "mean"]
    assert spans["separator"] is None


def test_what_it_says_of_prompts_and_answers(tiny_model, described):
    decode = tiny_model.tokenizer.tokenizer.decode
    before, memory, question, after = described["pieces"]
    assert decode(before["ids"]).endswith("<|user|>\nBackground:\n")
    assert memory == {"kind": "memory"}
    assert question == {"kind": "question", "before": "\n\nQuestion: ", "after": ""}
    assert decode(after["ids"]) == "</s>\n<|assistant|>\n"
    separator = torch.tensor([described["separator"]])
    assert torch.equal(separator, tiny_model.memory_tokens.separator.float())
    assert (described["end_ids"], described["stop_texts"]) == ([2], [])
    assert (described["bos_id"], described["pad_id"], described["max_new_tokens"]) == (1, 2, 128)
    assert described["control_ids"] == tiny_model.tokenizer.control_ids
    prompt = tiny_model.config.prompt
    assert described["prompt"] == {"system": prompt.system, "user": prompt.user}


def test_embeddings_that_the_backbone_scales(random_backbone):
    """Gemma 3 multiplies rows of the matrix by the root of its width."""
    model = new_model(random_backbone(Gemma3TextConfig, head_dim=12, query_pre_attn_scalar=12))
    scale = describe(model, torch.float32)["embedding_scale"]
    assert scale == pytest.approx(48**0.5, rel=1e-5)
    model.backbone.get_input_embeddings().register_forward_hook(lambda m, i, rows: rows.sin())
    assert describe(model, torch.float32)["embedding_scale"] is None


def test_it_is_read_back(described, tmp_path):
    described = {**described, "files": ["clara.json"], "name": 'a "ü"\n'}
    write(tmp_path, described)
    assert read(tmp_path) == json.loads(json.dumps(described))
    lines = (tmp_path / "clara.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(described) + 2


def test_hostile_words_of_a_template_are_only_words(tiny_backbone, tmp_path):
    prompt = PromptTemplate(system='"}</s>\x00', user="{memory}\n{question} <|user|>")
    described = describe(
        new_model(tiny_backbone("llama"), CONFIG.replace(prompt=prompt)), torch.float32
    )
    write(tmp_path, {**described, "files": []})
    found = read(tmp_path)
    assert found["prompt"] == {"system": prompt.system, "user": prompt.user}
    assert found["pieces"][2]["after"] == " <|user|>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "clara.json: cannot be read: No such file"),
        ("{", "clara.json: not JSON"),
        ("\ud83d".encode("utf-16", "surrogatepass"), "clara.json: not JSON"),
        ("[" * 100_000, "clara.json: not JSON"),
        ("[]", "has no 'clara_export'"),
        ('{"backbone": "x"}', "has no 'clara_export'"),
        ('{"clara_export": 2}', "clara_export 2 is not supported; this version reads 1"),
        ('{"clara_export": 1}', "'files' must be a list of names, got None"),
        ('{"clara_export": 1, "files": [1]}', r"'files' must be a list of names, got \[1\]"),
    ],
)
def test_what_cannot_be_read(tmp_path, text, message):
    if text is not None:
        (tmp_path / "clara.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ExportError, match=message):
        read(tmp_path)
