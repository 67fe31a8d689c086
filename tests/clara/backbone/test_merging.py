"""A copy of the backbone with the generator merged in: what it computes and when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import clara.backbone.merging
import clara.model.modules
from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR
from clara.backbone.free_memory import free_memory
from clara.backbone.merging import (
    MergedGenerator,
    merged_copy,
    merged_copy_fits,
    parameter_versions,
)

from .. import new_models
from ..random_adapters import draw_adapters

IDS = torch.randint(6, 600, (2, 12), generator=torch.Generator().manual_seed(0))


def new_model(folder, **changes) -> Clara:
    """A model whose adapters change what the backbone computes."""
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, dtype="float32", **changes
    )
    return draw_adapters(new_models.new_model(folder, config, "cpu"), seed=4)


@pytest.fixture
def model(tiny_backbone):
    return new_model(tiny_backbone("llama"))


@torch.no_grad()
def logits(model: Clara, name: str | None) -> torch.Tensor:
    with model.adapters.active(name):
        return model.backbone(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_the_copy_computes_what_the_adapter_computes(tiny_backbone, family):
    model = new_model(tiny_backbone(family))
    before = {name: logits(model, name) for name in (None, *ADAPTERS)}
    for name in ADAPTERS:
        merged = merged_copy(model.backbone, name)
        with torch.no_grad():
            found = merged(input_ids=IDS).logits
        torch.testing.assert_close(found, before[name], rtol=1e-4, atol=1e-4)
        assert (found - before[None]).abs().max() > 0.1
        assert not any("lora" in key for key, _ in merged.named_parameters())
        assert not any(m.training for m in merged.modules())
    for name, expected in before.items():
        assert torch.equal(logits(model, name), expected)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_only_the_merged_weights_are_copied(tiny_backbone, family):
    model = new_model(tiny_backbone(family))
    own = {p.data_ptr() for p in model.backbone.parameters()}
    copied = {
        name
        for name, parameter in merged_copy(model.backbone, GENERATOR).named_parameters()
        if parameter.data_ptr() not in own
    }
    layers = model.backbone.config.num_hidden_layers
    assert len(copied) == 7 * layers
    assert all(name.endswith("_proj.weight") for name in copied)


def test_a_copy_of_tied_embeddings_is_tied(model):
    model.backbone.lm_head.weight = model.backbone.model.embed_tokens.weight
    merged = merged_copy(model.backbone, GENERATOR)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.lm_head.weight is model.backbone.lm_head.weight


def used(model: Clara, adapter: str | None = GENERATOR) -> bool:
    """Whether generation goes through a merged copy."""
    with model.generating(adapter) as backbone:
        return backbone is not model.backbone


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.1)


def fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, fused=True)


@pytest.mark.parametrize("optimizer", [sgd, adam, fused])
def test_an_optimizer_step_ends_the_copy(model, optimizer):
    assert model.merge_generator()
    assert used(model)
    model.adapters.freeze(GENERATOR)
    parameters = list(model.adapters.parameters(GENERATOR).values())
    with model.adapters.active(GENERATOR):
        output = model.backbone(input_ids=IDS).logits
    functional.cross_entropy(output.flatten(0, 1), IDS.flatten()).backward()
    assert used(model)
    model.train()
    optimizer(parameters).step()
    model.eval()
    assert not used(model)
    assert model._merged is None
    assert model.merge_generator()
    with model.generating(GENERATOR) as backbone, torch.no_grad():
        found = backbone(input_ids=IDS).logits
    torch.testing.assert_close(found, logits(model, GENERATOR), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", [sgd, adam, fused])
def test_an_optimizer_step_of_the_compressor_is_another_model(model, optimizer):
    before = model.fingerprint
    for train in (model.adapters.parameters(COMPRESSOR).values(), model.memory_tokens.parameters()):
        parameters = [p.requires_grad_(True) for p in train]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        assert model.fingerprint == before
        model.train()
        optimizer(parameters).step()
        assert model.fingerprint != before
        before = model.fingerprint


@pytest.mark.parametrize("way", ["write", "load", "replace data", "copy"])
def test_any_change_of_the_generator_ends_the_copy(model, way, tmp_path):
    model.adapters.save(tmp_path)
    assert model.merge_generator()
    first = next(iter(model.adapters.parameters(GENERATOR).values()))
    if way == "write":
        with torch.no_grad():
            first[0, 0] += 1
    elif way == "load":
        model.adapters.load(tmp_path)
    elif way == "copy":
        model.adapters.copy(COMPRESSOR, GENERATOR)
    else:
        first.data = first.data.clone()
    assert not used(model)


def test_what_is_not_the_generator_keeps_the_copy(model):
    assert model.merge_generator()
    with torch.no_grad():
        for parameter in model.adapters.parameters(COMPRESSOR).values():
            parameter.add_(1)
        model.memory_tokens.memory.add_(1)
    model.adapters.freeze(GENERATOR)
    assert used(model)
    model.train().eval()  # an optimizer may have written without torch counting it
    assert not used(model)
    assert not used(model, COMPRESSOR)
    assert not used(model, None)


def test_a_quantized_backbone_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.backbone, "is_quantized", True, raising=False)
    with pytest.raises(ValueError, match="merge_generator needs a backbone that is not quantized"):
        model.merge_generator()
    assert not used(model)


def test_without_memory_for_it_there_is_no_copy(model, monkeypatch):
    assert merged_copy_fits(model.backbone)
    assert model.merge_generator()
    monkeypatch.setattr(clara.model.modules, "merged_copy_fits", lambda backbone: False)
    assert not model.merge_generator()
    assert not used(model)


def test_the_memory_needed_is_that_of_the_merged_weights(model, monkeypatch):
    weights = [layer.get_base_layer().weight for layer in model.adapters._layers]
    needed = sum(weight.nbytes for weight in weights)
    for free, fits in ((needed, False), (2 * needed, True)):
        monkeypatch.setattr(clara.backbone.merging, "free_memory", lambda device, free=free: free)
        assert merged_copy_fits(model.backbone) is fits


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux says how much there is")
def test_memory_that_files_are_kept_in_is_free():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    assert free_memory(torch.device("cpu")) == pytest.approx(available, rel=0.2)


def test_versions_tell_writes_from_reads(model):
    parameters = list(model.adapters.parameters(GENERATOR).values())
    before = parameter_versions(parameters)
    merged = MergedGenerator.of(model.backbone, model.adapters)
    logits(model, GENERATOR)
    assert parameter_versions(parameters) == before
    assert merged.is_current(model.adapters)
    with torch.no_grad():
        parameters[-1].mul_(1)
    assert parameter_versions(parameters) != before
    assert not merged.is_current(model.adapters)
