"""Which adapter computes, which trains, and what is saved."""

from __future__ import annotations

import statistics
import threading
import time

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS
from clara.backbone.loading import load_backbone
from clara.backbone.lora import MergingLinear

BASE = "tests/data/reference/base"


@pytest.fixture
def model(tiny_backbone):
    config = ClaraConfig(document_length=64)
    model = Clara.from_backbone(tiny_backbone("llama"), config, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ADAPTERS:
            for parameter in model.adapters.parameters(name).values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model: Clara, name: str | None) -> torch.Tensor:
    with model.adapters.active(name):
        return model.backbone(input_ids=torch.arange(6, 20)[None]).logits


def test_each_adapter_computes_what_peft_says(model):
    outputs = {name: logits(model, name) for name in (None, *ADAPTERS)}
    shown = list(outputs.values())
    for i, one in enumerate(shown):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in shown[i + 1 :])
    layers = [m for m in model.backbone.modules() if isinstance(m, MergingLinear)]
    for name in ADAPTERS:
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(name)
        with torch.no_grad():
            expected = model.backbone(input_ids=torch.arange(6, 20)[None]).logits
        torch.testing.assert_close(outputs[name], expected)


def test_what_was_active_is_restored(model):
    states = [vars(m) for m in model.backbone.modules() if hasattr(m, "lora_A")]

    def now() -> set[tuple[str, bool]]:
        return {(s["_active_adapter"][0], s["_disable_adapters"]) for s in states}

    def fail(state: set[tuple[str, bool]]) -> None:
        assert state == {("generator", False)}
        raise RuntimeError("inside")

    assert {disabled for _, disabled in now()} == {True}
    with model.adapters.active("compressor"):
        with pytest.raises(RuntimeError, match="inside"), model.adapters.active("generator"):
            fail(now())
        assert now() == {("compressor", False)}
        with model.adapters.active(None):
            assert {disabled for _, disabled in now()} == {True}
        assert now() == {("compressor", False)}
    assert {disabled for _, disabled in now()} == {True}
    with pytest.raises(ValueError, match=r"adapter must be one of .*, got 'other'"):
        model.adapters.active("other").__enter__()


@pytest.mark.parametrize("trained", [(), ("compressor", "generator"), ("query_reasoner",)])
def test_what_trains_is_what_was_named(model, trained):
    model.adapters.freeze(*trained)
    with model.adapters.active("generator"):
        pass
    by_name = {n for n, p in model.named_parameters() if p.requires_grad}
    expected = {n for n, _ in model.named_parameters() if any(f".{t}." in n for t in trained)}
    assert by_name == expected
    assert bool(expected) == bool(trained)


def test_switching_takes_a_tenth_of_what_peft_takes(tmp_path):
    """On 210 layers. A ratio, as a time of its own depends on what else the machine does."""
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=30,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path)
    model = Clara.from_backbone(tmp_path, ClaraConfig(document_length=64), device="cpu")

    def ours() -> None:
        with model.adapters.active("generator"):
            pass

    def by_peft() -> None:
        for name in ("generator", "compressor"):
            for layer in model.adapters._layers:
                layer.set_adapter(name)

    def seconds(switch) -> float:
        begin = time.perf_counter()
        switch()
        return time.perf_counter() - begin

    pairs = [(seconds(ours), seconds(by_peft)) for _ in range(15)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs))
    assert mine < theirs / 10


def test_threads_do_not_mix_adapters(model):
    expected = {name: logits(model, name) for name in (None, *ADAPTERS)}
    wrong = []

    def work(name: str | None) -> None:
        for _ in range(25):
            if not torch.equal(logits(model, name), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_peft_reads_what_is_saved(model, tmp_path):
    model.adapters.save(tmp_path)
    for name in ADAPTERS:
        plain, _ = load_backbone(
            model.config.backbone, device=torch.device("cpu"), dtype=torch.float32
        )
        loaded = PeftModel.from_pretrained(plain, str(tmp_path / name)).eval()
        with torch.no_grad():
            output = loaded(input_ids=torch.arange(6, 20)[None]).logits
        torch.testing.assert_close(output, logits(model, name), rtol=1e-4, atol=1e-4)


def test_damaged_adapters_are_named(model, tmp_path):
    model.adapters.save(tmp_path)
    file = tmp_path / "generator" / "adapter_model.safetensors"
    state = load_file(file)
    key = sorted(state)[0]
    save_file({k: v for k, v in state.items() if k != key}, file)
    with pytest.raises(ValueError, match="adapter 'generator' does not fit the backbone: it lacks"):
        model.adapters.load(tmp_path)
    save_file({**state, key: torch.zeros(1, 1)}, file)
    with pytest.raises(ValueError, match=r"'generator' does not fit .* is \[1, 1\], expected"):
        model.adapters.load(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"generator/adapter_model\.safetensors: cannot read"):
        model.adapters.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="adapter 'generator' is missing"):
        model.adapters.load(tmp_path)
