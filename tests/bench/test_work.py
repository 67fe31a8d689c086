"""What the benchmarks count of a call's work."""

import pytest
import torch

from bench.work import Work
from bench.workload import layer_weights
from clara import Clara, ClaraConfig


@pytest.fixture
def model(backbone):
    config = ClaraConfig(compression_rate=8, document_length=48, lora_rank=4, dtype="float32")
    return Clara.from_backbone(backbone, config, device="cpu")


def amounts(model, positions, passes, computed):
    weights = layer_weights(model)
    return {"positions": positions, "bytes": 4 * weights * passes, "flops": 2 * weights * computed}


def test_weights_are_those_of_the_layers(model):
    c = model.backbone.config
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    attention = c.hidden_size * 2 * (c.num_attention_heads + c.num_key_value_heads) * width
    each = attention + 3 * c.hidden_size * c.intermediate_size
    assert layer_weights(model) == c.num_hidden_layers * each


def test_a_generation_reads_the_prompt_and_then_token_by_token(model):
    memory = model.compress(["The river."]).memory[None]
    work = Work(model)
    call = work.counted(
        "answer",
        lambda: model.generate(["Where?"], memory, max_new_tokens=3),
        model.backbone,
    )
    call()  # and the words that all prompts begin with
    whole = model.prompt_tokens("Where?", 1)
    assert work.amounts("answer") == amounts(model, whole + 2, 4, whole + 2)
    call()
    rest = whole - model.memory_prompts(["Where?"], [1])[0].first_slot
    assert work.amounts("answer") == amounts(model, rest + 2, 3, rest + 2)


def test_passes_with_gradients_count_twice(model):
    work = Work(model)
    ids = torch.ones(2, 5, dtype=torch.long)

    def step():
        model.backbone(input_ids=ids)
        with torch.no_grad():
            model.backbone(input_ids=ids)

    work.counted("step", step, model.backbone)()
    assert work.amounts("step") == amounts(model, 20, 3, 30)


def test_only_what_runs_within_is_counted(model):
    work = Work(model)
    ids = torch.ones(1, 5, dtype=torch.long)
    one = work.counted("one", lambda: None, model.backbone)
    hooks = model.backbone.base_model._forward_pre_hooks
    assert not hooks
    other = work.counted("other", lambda: model.backbone(input_ids=ids), model.backbone)
    with torch.no_grad():
        other()
        one()
        model.backbone(input_ids=ids)
    assert work.amounts("one") == amounts(model, 0, 0, 0)
    assert work.amounts("other") == amounts(model, 5, 1, 5)
    assert not hooks


def test_a_call_that_fails_ends_the_counting(model):
    work = Work(model)

    def fail():
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        work.counted("call", fail, model.backbone)()
    assert work.amounts("call")["positions"] == 0
    assert not model.backbone.base_model._forward_pre_hooks
