"""The last layer computed for memory rows alone: same memory, same gradients, nothing left."""

from __future__ import annotations

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.backbone.adapters import COMPRESSOR
from clara.backbone.memory_rows import last_layer, restricted_to_rows
from clara.text.packing import compressor_input, pack
from clara.text.passages import as_documents, prepare_passages

TEXTS = ["The coastline is 580 km long.", "A", "Two words here, and a few more of them.", "A"]


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3", "phi3"])
def model(request, tiny_backbone):
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, lora_dropout=0.0, dtype="float32"
    )
    model = Clara.from_backbone(tiny_backbone(request.param), config, device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapters.parameters(COMPRESSOR).values():
            parameter.normal_(std=0.1, generator=generator)
    return model


def packed(model, texts):
    passages = prepare_passages(model.tokenizer, as_documents(texts), limit=64, overflow="error")
    inputs = [compressor_input(p.tokens, bos=1, eos=2, n_memory=4) for p in passages]
    (batch,) = pack(inputs, batch_tokens=10_000, device=model.device)
    return batch


def hooks(model):
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS * 8])
def test_memory_and_its_gradients_are_the_same(model, texts):
    batch = packed(model, texts)
    model.adapters.freeze(COMPRESSOR)
    model.memory_tokens.requires_grad_(True)
    names, trained = zip(
        *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
    )
    results = []
    for memory_only in (False, True):
        memory = model.encode(batch, COMPRESSOR, memory_only=memory_only)[batch.memory_rows]
        gradients = torch.autograd.grad(memory.sin().sum(), trained)
        results.append((memory, gradients))
    model.adapters.freeze()
    model.memory_tokens.requires_grad_(False)
    (full, expected), (short, found) = results
    torch.testing.assert_close(short, full, rtol=1e-5, atol=1e-5)
    for name, one, other in zip(names, found, expected, strict=True):
        scale = other.abs().max()
        assert (scale > 1e-3) == (name != "memory_tokens.separator"), name
        assert (one - other).abs().max() <= 1e-4 * scale, name


def test_only_memory_rows_reach_the_feed_forward_of_the_last_layer(model):
    batch = packed(model, TEXTS)
    body = model.backbone.base_model
    index, modules = last_layer(body)
    assert index == len(body.layers) - 1
    counts = []
    for layer in body.layers:
        down = layer.mlp.down_proj
        counts.append(
            (down, down.register_forward_hook(lambda m, a, o: seen.append(a[0].shape[1])))
        )
    seen = []
    with torch.no_grad():
        model.encode(batch, COMPRESSOR, memory_only=True)
    for _, handle in counts:
        handle.remove()
    assert seen == [len(batch.ids), len(batch.ids), 4 * len(TEXTS)]
    assert modules[1] is body.layers[-1].mlp


def test_nothing_is_left_behind_when_the_forward_fails(model, monkeypatch):
    batch = packed(model, TEXTS)
    with torch.no_grad():
        before = model.encode(batch, COMPRESSOR, memory_only=True)
    count = len(hooks(model))
    for where in ("self_attn.o_proj", "mlp.down_proj", "mlp"):
        module = model.backbone.base_model.layers[-1].get_submodule(where)

        def fail(*args, **kwargs):
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(module, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model.encode(batch, COMPRESSOR, memory_only=True)
        assert len(hooks(model)) == count
    assert all(layer._disable_adapters for layer in model.adapters._layers)
    with torch.no_grad():
        assert torch.equal(model.encode(batch, COMPRESSOR, memory_only=True), before)


def test_no_rows_give_zeros():
    module = torch.nn.Linear(3, 3)
    with restricted_to_rows([module], torch.tensor([], dtype=torch.long)):
        assert not module(torch.ones(1, 5, 3)).any()
