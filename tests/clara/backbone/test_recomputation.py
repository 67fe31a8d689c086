"""Gradients with checkpointing are those without it, although adapters are switched."""

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.data.examples import AnswerExample
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder
from clara_kernels import cosine_scores, select_topk

from ..random_adapters import draw_adapters

EXAMPLES = [
    AnswerExample("Who built it?", ("The mill was built by Ada.", "A river runs by."), "Ada"),
    AnswerExample("Where is it?", ("The bridge is in the north of the town.",), "in the north"),
]


def model_of(folder, **settings):
    config = ClaraConfig(
        compression_rate=16,
        document_length=64,
        lora_rank=4,
        lora_alpha=8,
        dtype="float32",
        **settings,
    )
    model = Clara.from_backbone(folder, config)
    return draw_adapters(model, seed=0)


def batch_of(model):
    return CompressionCollator(Encoder(model.tokenizer, model.config, None))(EXAMPLES)


def gradients(objective, batch, *, seed=3):
    torch.manual_seed(seed)
    objective.train()
    objective.zero_grad()
    sums = objective(batch)
    sum(sums.values()).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "phi3"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_compression_gradients_are_the_same(tiny_backbone, family, weight):
    model = model_of(tiny_backbone(family), lora_dropout=0.2)
    objective = CompressionObjective(model, alignment_weight=weight)
    batch = batch_of(model)
    plain = gradients(objective, batch)
    objective.activation_checkpointing_enable()
    checkpointed = gradients(objective, batch)
    assert plain.keys() == checkpointed.keys()
    trained = {name.split(".lora_")[0] for name in plain}
    assert len(trained) > 3
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-7)
    for adapter in (COMPRESSOR, GENERATOR):
        assert any(f".{adapter}." in name for name in plain)
    assert not any(f".{QUERY_REASONER}." in name for name in plain)


def test_layers_are_recomputed_at_all(tiny_backbone):
    model = model_of(tiny_backbone("llama"))
    objective = CompressionObjective(model)
    layer = model.backbone.base_model.layers[1].self_attn
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(objective, batch_of(model))
    assert len(calls) == 2  # documents and prompts
    objective.activation_checkpointing_enable()
    calls.clear()
    gradients(objective, batch_of(model))
    assert len(calls) == 4


def test_end_to_end_gradients_are_the_same(tiny_backbone):
    model = model_of(tiny_backbone("llama"), lora_dropout=0.0)
    documents = model.compress(["The mill was built by Ada.", "A river runs.", "A bridge."])
    model.adapters.freeze(QUERY_REASONER, GENERATOR)
    batch = batch_of(model)

    def step():
        model.train()
        model.zero_grad()
        memory = model.encode_memory(batch.documents.batch, QUERY_REASONER).memory
        queries = batch.documents.in_order(memory)[0].flatten()[None]
        scores = cosine_scores(queries, documents.memory.flatten(1)[None])
        selected, _ = select_topk(scores, documents.memory[None], 2, temperature=0.5)
        loss = model.answer_loss(["Who built it?"], selected, ["Ada"])
        loss.backward(retain_graph=True)
        once = {
            (name, key): parameter.grad.clone()
            for name in (QUERY_REASONER, GENERATOR)
            for key, parameter in model.adapters.parameters(name).items()
        }
        loss.backward()  # a retained graph is recomputed again
        for (name, key), value in once.items():
            grad = model.adapters.parameters(name)[key].grad
            torch.testing.assert_close(grad, 2 * value, rtol=1e-5, atol=1e-7)
        return once

    model.adapters.freeze(QUERY_REASONER, GENERATOR)
    plain = step()
    model.enable_gradient_checkpointing()
    for key, value in step().items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-7)


def hooks(model):
    modules = model.backbone.modules()
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]


def test_nothing_is_left_active(tiny_backbone):
    model = model_of(tiny_backbone("llama"))
    objective = CompressionObjective(model)
    objective.activation_checkpointing_enable()
    gradients(objective, batch_of(model))  # transformers adds hooks of its own at the first
    before = hooks(model)
    gradients(objective, batch_of(model))
    states = {(layer._disable_adapters, *layer._active_adapter) for layer in model.adapters._layers}
    assert states == {(True, COMPRESSOR)}
    assert hooks(model) == before
    assert not model.adapters.held_here


def test_options_that_would_break_it_are_refused(tiny_backbone):
    model = model_of(tiny_backbone("llama"))
    for options in ({"use_reentrant": True}, {"context_fn": None}):
        with pytest.raises(ValueError, match="not reentrant"):
            model.enable_gradient_checkpointing(**options)
    model.enable_gradient_checkpointing(use_reentrant=False)
