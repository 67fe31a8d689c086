"""The benchmark's baseline takes the steps that our training takes, the other way."""

import pytest
import torch

from bench.training_steps import (
    CompressionSteps,
    EndToEndSteps,
    model_to_train,
    pretraining_examples,
    ranking_examples,
)
from clara import ClaraConfig
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER


@pytest.fixture
def model(backbone, monkeypatch):
    small = ClaraConfig(
        compression_rate=16, document_length=256, lora_rank=4, lora_alpha=8, dtype="float32"
    )
    monkeypatch.setattr("bench.workload.ClaraConfig", lambda **_: small.replace(temperature=0.5))
    return model_to_train(backbone, 16)


def compare_gradients(steps, adapters, rows):
    ours, theirs = steps.our_loss(), steps.their_loss()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    ours.backward()
    theirs.backward()
    model = steps.objective.model
    for adapter in (COMPRESSOR, QUERY_REASONER, GENERATOR):
        own = {
            name: parameter.grad
            for name, parameter in model.adapters.parameters(adapter).items()
            if parameter.grad is not None
        }
        other = steps.reference.gradients(adapter)
        assert own.keys() == other.keys()
        assert bool(own) is (adapter in adapters)
        for name, gradient in own.items():
            error = (gradient - other[name]).norm() / other[name].norm()
            assert error < 1e-4, f"{adapter}: {name}: {error:.1e}"
    tokens = model.memory_tokens
    if rows:
        own = torch.cat([tokens.memory.grad, tokens.encode.grad, tokens.separator.grad])
        torch.testing.assert_close(own, steps.reference.rows.grad, rtol=1e-3, atol=1e-6)
    else:
        assert steps.reference.rows.grad is None
        assert all(parameter.grad is None for parameter in tokens.parameters())


def test_pretraining(model):
    steps = CompressionSteps(model, pretraining_examples(model, 3))
    compare_gradients(steps, (COMPRESSOR, GENERATOR), rows=True)


def test_end_to_end(model):
    steps = EndToEndSteps(model, ranking_examples(model, 2, 4), 3)
    compare_gradients(steps, (QUERY_REASONER, GENERATOR), rows=False)


def test_steps_go_the_same_way(model):
    steps = CompressionSteps(model, pretraining_examples(model, 2))
    losses = [(steps.ours(), steps.theirs()) for _ in range(4)]
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert losses[-1][0] < losses[0][0]


def test_the_reference_way_is_what_it_is_said_to_be(model, monkeypatch):
    """Padded to the limit, all logits, all states, and candidates encoded in every step."""
    steps = EndToEndSteps(model, ranking_examples(model, 2, 4), 3)
    seen = []
    forward = steps.reference.backbone.forward

    def watched(**inputs):
        outputs = forward(**inputs)
        seen.append((tuple(outputs.logits.shape[:2]), outputs.hidden_states is not None))
        return outputs

    monkeypatch.setattr(steps.reference.backbone, "forward", watched)
    steps.theirs()
    limit = 256 + 3 + 16
    longest = max(steps.batch.prompts.batch.lengths)
    assert seen == [((8, limit), True), ((2, limit), True), ((2, longest), False)]
