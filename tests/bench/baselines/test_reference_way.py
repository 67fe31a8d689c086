"""The benchmark's baseline computes the memory that `Clara.compress` computes, the other way."""

import pytest
import torch

from bench.baselines.reference_way import ReferenceWay
from clara import Clara, ClaraConfig

LENGTH = 32
TEXTS = [
    "The river runs north of the town.",
    "Grain is traded for salt.",
    "Nobody knows it.",
    "In early spring the ferry crosses twice a day.",
    "A bridge stood here.",
]


@pytest.fixture(scope="module", params=[True, False], ids=["distinct", "shared"])
def model(backbone, request):
    config = ClaraConfig(
        compression_rate=8,
        document_length=LENGTH,
        distinct_memory_tokens=request.param,
        lora_rank=4,
        lora_alpha=8,
        dtype="float32",
    )
    model = Clara.from_backbone(backbone, config, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.adapters.parameters("compressor").values():
            parameter.normal_(std=0.1, generator=generator)
    return model


def relative_difference(ours, theirs):
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()


def test_same_memory(model):
    theirs = ReferenceWay(model, batch_size=2).compress(TEXTS)
    ours = model.compress(TEXTS, overflow="error").memory
    assert theirs.shape == (len(TEXTS), LENGTH // 8, model.hidden_size)
    assert relative_difference(ours, theirs) < 1e-5


def test_adapter_and_rows_matter(model, backbone):
    bare = ReferenceWay(Clara.from_backbone(backbone, model.config, device="cpu", seed=9))
    ours = model.compress(TEXTS).memory
    assert relative_difference(ours, bare.compress(TEXTS)) > 0.1


def test_computes_everything_for_every_position(model, monkeypatch):
    reference = ReferenceWay(model, batch_size=4)
    seen = []
    forward = reference.backbone.forward

    def watched(**inputs):
        outputs = forward(**inputs)
        seen.append((outputs.logits.shape[:2], len(outputs.hidden_states)))
        return outputs

    monkeypatch.setattr(reference.backbone, "forward", watched)
    reference.compress(TEXTS)
    positions = LENGTH + 3 + LENGTH // 8
    layers = reference.backbone.config.num_hidden_layers
    assert seen == [((4, positions), layers + 1), ((1, positions), layers + 1)]
    own = {type(module).__module__ for module in reference.backbone.modules()}
    assert not any(name.startswith("clara") for name in own)
    assert reference.backbone.config._attn_implementation == "sdpa"
