import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    Lfm2Config,
    MistralConfig,
    Qwen2Config,
)

from clara import Clara, ClaraConfig
from clara.backbone.loading import BackboneError, load_backbone

BASE = Path(__file__).parents[2] / "data" / "reference" / "base"
CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
)
SIZES = {
    "vocab_size": 600,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@pytest.fixture
def folder(tmp_path):
    """A copy of a backbone that a test may damage."""
    return shutil.copytree(BASE, tmp_path / "backbone")


@pytest.fixture
def write(tmp_path):
    """Writes a random backbone of a configuration, with a tokenizer."""

    def write(config):
        target = tmp_path / type(config).__name__
        AutoModelForCausalLM.from_config(config).save_pretrained(target)
        AutoTokenizer.from_pretrained(BASE).save_pretrained(target)
        return target

    return write


def refusal(source, config=CONFIG):
    """The one line with which a backbone is refused."""
    with pytest.raises(BackboneError) as caught:
        Clara.from_backbone(source, config)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(source).name in message
    return message


# What is loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_backbone_is_frozen_and_evaluates(dtype):
    backbone, tokenizer = load_backbone(str(BASE), device=torch.device("cpu"), dtype=dtype)
    assert {p.dtype for p in backbone.parameters()} == {dtype}
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())
    assert len(tokenizer) == 600


def test_sampling_defaults_of_a_checkpoint_are_dropped(folder):
    stored = {"do_sample": True, "temperature": 5.0, "eos_token_id": [2, 5], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(stored))
    model = Clara.from_backbone(folder, CONFIG)
    settings = model.backbone.generation_config
    assert not settings.do_sample
    assert settings.eos_token_id == [2, 5]
    memory = model.compress(["The river is long."]).memory[None]
    first = model.generate(["Where?"], memory, max_new_tokens=24)
    assert all(model.generate(["Where?"], memory, max_new_tokens=24) == first for _ in range(3))


def test_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Clara.from_backbone("~/backbone", CONFIG).config.backbone == str(folder)


def test_a_tokenizer_without_a_beginning_token(folder):
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content["bos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    template = (folder / "chat_template.jinja").read_text().replace("{{bos_token}}", "")
    (folder / "chat_template.jinja").write_text(template)
    model = Clara.from_backbone(folder, CONFIG)
    assert model.tokenizer.bos_id is None
    texts = ["The river is long.", "A town"]
    together = model.compress(texts).memory
    alone = torch.cat([model.compress([text]).memory for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together - Clara.from_backbone(BASE, CONFIG).compress(texts).memory).abs().max() > 0.1
    assert len(model.answer(["Where?"], texts, top_k=1, max_new_tokens=4)) == 1


def test_a_backbone_without_a_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    model = Clara.from_backbone(folder, CONFIG)
    (answer,) = model.answer(["Where?"], ["The river is long."], top_k=1, max_new_tokens=4)
    assert answer.prompt_tokens > 5
    loss = model.answer_loss(["Where?"], model.compress(["A town."]).memory[None], ["there"])
    assert loss.isfinite()


def test_learned_positions(write):
    """Positions count from 0 in each packed document."""
    size = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 600}
    model = Clara.from_backbone(
        write(GPT2Config(**size, bos_token_id=1, eos_token_id=2, initializer_range=0.2)), CONFIG
    )
    texts = ["The river is long.", "A town", "Salt is traded for grain by nobody"]
    alone = torch.cat([model.compress([text]).memory for text in texts])
    torch.testing.assert_close(model.compress(texts).memory, alone, rtol=1e-5, atol=1e-5)


# What is refused


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_missing_folder(name):
    assert "does not exist" in refusal(name)


def test_a_folder_without_configuration(tmp_path):
    assert "holds no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "unheard-of"}', ""])
def test_a_broken_configuration(folder, content):
    (folder / "config.json").write_text(content)
    refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "cannot load backbone" in refusal(folder)


def test_missing_weights_are_not_made_up(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert "lacks the weights 'model.layers.1.mlp.up_proj.weight' (1 in all)" in refusal(folder)


def test_weights_of_another_shape(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, file, metadata={"format": "pt"})
    refusal(folder)


def test_pickled_weights_are_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "safetensors" in refusal(folder)


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    content["model_type"] = "custom"
    content["auto_map"] = {
        "AutoConfig": "custom.CustomConfig",
        "AutoModelForCausalLM": "custom.CustomModel",
    }
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [None, "not JSON"])
def test_a_broken_tokenizer(folder, content):
    (folder / "tokenizer.json").unlink()
    if content:
        (folder / "tokenizer.json").write_text(content)
    refusal(folder)


def test_an_encoder(write):
    config = BertConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"})
    assert "its attention is not causal" in refusal(write(config))


def test_layers_that_would_mix_packed_documents(write):
    config = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
    assert "layers other than attention" in refusal(write(config))


def test_flash_attention_without_its_package(monkeypatch):
    monkeypatch.setattr("clara.backbone.loading.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="needs the package flash-attn"):
        Clara.from_backbone(BASE, CONFIG.replace(attention="flash_attention_2"))


def test_quantization_without_its_package(monkeypatch):
    """Only 8 bits on a CPU need no package."""
    monkeypatch.setattr("clara.backbone.loading.find_spec", lambda name: None)
    for quantization, device in (("nf4", "cpu"), ("nf4", "cuda"), ("int8", "cuda")):
        settings = {"device": torch.device(device), "dtype": torch.float32}
        with pytest.raises(BackboneError, match=f"'{quantization}' needs the package bitsandbytes"):
            load_backbone(str(BASE), quantization=quantization, **settings)
    model = Clara.from_backbone(BASE, CONFIG.replace(quantization="int8"), device="cpu")
    assert model.compress(["a"]).memory.isfinite().all()


def test_fewer_positions_than_a_document_has(write):
    config = MistralConfig(**SIZES, max_position_embeddings=70)
    with pytest.raises(ValueError, match="do not fit the backbone's max_position_embeddings of 70"):
        Clara.from_backbone(write(config), CONFIG)


def test_a_sequence_beyond_the_positions_is_refused_before_it_is_embedded(write, monkeypatch):
    model = Clara.from_backbone(write(MistralConfig(**SIZES, max_position_embeddings=71)), CONFIG)

    def embedded(*arguments):
        pytest.fail("embeddings were made")

    monkeypatch.setattr(model, "embed", embedded)
    with pytest.raises(ValueError, match="longer than the backbone's 71 positions"):
        model.answer_loss(["word " * 70], torch.zeros(1, 1, 4, model.hidden_size), ["word"])


def test_a_prompt_beyond_the_positions_has_no_loss(write):
    """Nor an answer: both are refused."""
    config = MistralConfig(**SIZES, max_position_embeddings=71)
    model = Clara.from_backbone(write(config), CONFIG)
    memory = model.compress(["word " * 200], overflow="truncate").memory
    assert memory.isfinite().all()
    with pytest.raises(ValueError, match="longer than the backbone's 71 positions"):
        model.answer_loss(["word " * 70], memory[None], ["word"])
    with pytest.raises(ValueError, match="the backbone's 71 positions"):
        model.generate(["word " * 70], memory[None], max_new_tokens=1)


def test_a_sliding_window_that_is_switched_off(write):
    config = Qwen2Config(**SIZES, sliding_window=32, use_sliding_window=False)
    assert Clara.from_backbone(write(config), CONFIG).compress(["a"]).memory.isfinite().all()


# GGUF files that are none


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"text" * 100]
)
def test_a_corrupt_gguf_file(tmp_path, monkeypatch, content):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.GGUF"
    file.write_bytes(content)
    assert "cannot read GGUF file" in refusal(file)
    assert not any((tmp_path / "cache").rglob("*.safetensors"))


def test_a_missing_gguf_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "model.gguf")
