"""Steps in bfloat16, and the plain pass beside them, compute what they are compared for."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.dtype_steps import DtypeSteps, PlainPass, like_lengths
from bench.training_steps import CompressionSteps, model_to_train, pretraining_examples
from clara import ClaraConfig


@pytest.fixture
def small(monkeypatch):
    def config(**given):
        return ClaraConfig(lora_rank=4, lora_alpha=8, **given)

    monkeypatch.setattr("bench.workload.ClaraConfig", config)


def test_the_step_is_that_of_the_training_suite(small, backbone):
    model = model_to_train(backbone, 16)
    expected = CompressionSteps(model, pretraining_examples(model, 2)).our_loss()
    steps = {dtype: DtypeSteps(backbone, 16, 2, dtype) for dtype in ("float32", "bfloat16")}
    torch.testing.assert_close(steps["float32"].loss(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(steps["bfloat16"].loss(), expected, rtol=0.02, atol=0)
    batch = steps["bfloat16"].batch
    assert sum(steps["bfloat16"].lengths) == len(batch.documents.batch.ids) + len(
        batch.prompts.batch.ids
    )
    for step in steps.values():
        first = step()
        assert step() < first


def test_the_plain_pass_gives_the_gradients_of_sequences_one_by_one(backbone):
    lengths = [5, 40, 4, 38]
    plain = PlainPass(backbone, lengths, "float32")
    found = plain()
    assert [tuple(each.shape[:2]) for each in found] == [(2, 40), (1, 5), (1, 4)]
    body = AutoModelForCausalLM.from_pretrained(backbone).base_model
    rows = plain._inputs[0][0].detach()[1:, :38].requires_grad_()
    upstream = torch.ones_like(rows)
    (expected,) = torch.autograd.grad(body(inputs_embeds=rows).last_hidden_state, rows, upstream)
    torch.testing.assert_close(found[0][1, :38], expected[0], rtol=1e-4, atol=1e-5)


def test_like_lengths():
    assert list(like_lengths([])) == []
    assert list(like_lengths([9, 100, 91, 89, 10])) == [[100, 91], [89], [10, 9]]
    assert [len(group) for group in like_lengths([500] * 5)] == [2, 2, 1]
