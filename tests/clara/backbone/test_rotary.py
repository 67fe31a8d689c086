"""Rotary factors that depend on length: each sequence gets those that it has alone."""

import pytest
import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, Phi3Config

from clara import Clara, ClaraConfig
from clara.backbone.generation_settings import generation_settings
from clara.backbone.rotary import batching_key, recomputed_at_switch, switching_lengths
from clara.model import generation
from clara.text.packing import CompressorInput, compressor_input, pack
from clara.text.passages import as_documents, prepare_passages

from . import one_sequence

CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=2, lora_alpha=2, dtype="float32"
)
TEXT = "the river runs north of a small town and people trade salt for grain every spring "
TEXTS = ["salt", TEXT[:40], TEXT + TEXT[:30], TEXT[7:80]]
QUESTIONS = ["Where?", "Who?", "What do people trade for grain every spring? " + TEXT]
ANSWERS = ["salt", "people", "salt and grain"]


def longrope(switch):
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 6,
        "long_factor": [4.0] * 6,
        "original_max_position_embeddings": switch,
        "partial_rotary_factor": 1.0,
    }


def phi3(random_backbone, switch):
    folder = random_backbone(
        Phi3Config,
        original_max_position_embeddings=switch,
        rope_parameters=longrope(switch),
        sliding_window=None,
    )
    return Clara.from_backbone(folder, CONFIG)


@pytest.fixture(scope="module")
def model(random_backbone):
    """Its factors switch between the lengths of the documents."""
    return phi3(random_backbone, 32)


@pytest.fixture(scope="module")
def plain(model):
    return one_sequence.eager(model)


def inputs_of(model, texts):
    passages = prepare_passages(model.tokenizer, as_documents(texts), limit=64, overflow="error")
    return [compressor_input(p.tokens, bos=1, eos=2, n_memory=4) for p in passages]


def test_a_documents_memory_does_not_depend_on_its_neighbours(model, plain):
    inputs = inputs_of(model, TEXTS)
    lengths = [len(each.ids) for each in inputs]
    assert min(lengths) < 32 < max(lengths)
    rows = model.memory_tokens.memory.detach()
    expected = [one_sequence.states(model, plain, each.ids, rows)[-4:] for each in inputs]
    for batch_tokens in (10_000, 1):
        memory = model.compress(TEXTS, batch_tokens=batch_tokens).memory
        torch.testing.assert_close(memory, torch.stack(expected), rtol=1e-4, atol=1e-4)
    # Nor on what was computed before.
    torch.testing.assert_close(
        model.compress(TEXTS[:1]).memory[0], expected[0], rtol=1e-4, atol=1e-4
    )


def test_at_the_switching_length_itself(model, plain):
    """A sequence of exactly that length has the short factors still."""
    ids = [[-3, 1, *range(50, 50 + n), 2, *[-1] * 4] for n in (24, 25, 26)]
    rows = model.memory_tokens.memory.detach()
    assert [len(each) for each in ids] == [31, 32, 33]
    inputs = [CompressorInput(each, 4, 2, len(each) - 7) for each in ids]
    (batch,) = pack(inputs, batch_tokens=999, device=model.device)
    with torch.no_grad():
        hidden = model.encode(batch, "compressor").split(batch.lengths)
    for row, found in zip(batch.rows, hidden, strict=True):
        expected = one_sequence.states(model, plain, ids[row], rows)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_prompts_on_both_sides(random_backbone, checkpointing):
    model = phi3(random_backbone, 120)
    plain = one_sequence.eager(model)
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    with torch.no_grad():
        memory = torch.randn(6, 4, 48, generator=torch.Generator().manual_seed(0))
    each = [memory[:1], memory[1:2], memory[2:]]
    prompts = model.memory_prompts(QUESTIONS, [1, 1, 4], ANSWERS)
    lengths = [len(prompt.ids) for prompt in prompts]
    assert min(lengths) < 120 < max(lengths)
    expected = one_sequence.loss(model, plain, prompts, each)
    given = [part.clone().requires_grad_() for part in each]
    for module in model.modules():  # the comparison is without dropout
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = model.answer_loss(QUESTIONS, given, ANSWERS)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss * 1.0, given[:1])
    alone = given[0].detach().requires_grad_()
    only = model.answer_loss(QUESTIONS[:1], [alone], ANSWERS[:1])
    tokens = [len(p.ids) - p.answer_start for p in prompts]
    (expected_gradient,) = torch.autograd.grad(only * tokens[0] / sum(tokens), [alone])
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def long_prompts(model):
    memory = model.compress(TEXTS).memory
    return [memory[:1], memory[1:2], memory[:3]]


@pytest.mark.parametrize("beyond", [-30, -3, -1, 0, 1, 4, 400])
def test_answers_on_both_sides_and_across(random_backbone, long_prompts, beyond):
    """The switch lies `beyond` the first prompt's length: before, in the middle of the answer,
    at its very ends, after it."""
    first = len(phi3_prompts(random_backbone, long_prompts)[0].ids)
    model = phi3(random_backbone, first + beyond)
    plain = one_sequence.eager(model)
    prompts = model.memory_prompts(QUESTIONS, [1, 1, 3])
    expected = [
        one_sequence.answer(model, plain, prompt, part, 6)
        for prompt, part in zip(prompts, long_prompts, strict=True)
    ]
    options = {"max_new_tokens": 6}
    assert model.generate(QUESTIONS, long_prompts, **options) == expected
    assert "".join(model.stream(QUESTIONS[0], long_prompts[0], **options)) == expected[0]
    assert model.merge_generator()
    assert model.generate(QUESTIONS, long_prompts, **options) == expected


def phi3_prompts(random_backbone, memory):
    return phi3(random_backbone, 32).memory_prompts(QUESTIONS, [len(m) for m in memory])


def test_crossing_matters(random_backbone, long_prompts):
    """Otherwise the comparison above would say little."""
    first = len(phi3_prompts(random_backbone, long_prompts)[0].ids)
    answers = set()
    for switch in (first + 2, first - 1, 1000):
        model = phi3(random_backbone, switch)
        answers.add(model.generate(QUESTIONS[:1], long_prompts[:1], max_new_tokens=6)[0])
    assert len(answers) > 1


def test_settings_that_look_at_all_tokens_hold_across_the_switch(random_backbone, long_prompts):
    prompt = phi3_prompts(random_backbone, long_prompts)[0]
    model = phi3(random_backbone, len(prompt.ids) + 3)
    config = GenerationConfig(do_sample=False, no_repeat_ngram_size=1)
    settings = generation_settings(model.backbone, model.tokenizer, config, 12)
    with (
        torch.no_grad(),
        model.generating("generator") as backbone,
        recomputed_at_switch(backbone),
    ):
        inputs = generation.generation_inputs(
            model, backbone, [prompt], [long_prompts[0].flatten(0, 1)], settings, "generator"
        )
        ids = backbone.generate(**inputs, generation_config=settings)[0].tolist()
    assert len(set(ids)) == len(ids) > 4


def test_no_trace_is_left_on_the_backbone(model, long_prompts):
    model.generate(QUESTIONS, long_prompts, max_new_tokens=2)
    model.compress(TEXTS)
    assert "prepare_inputs_for_generation" not in vars(model.backbone)
    assert not any(module._forward_hooks for module in model.backbone.modules())


def test_what_is_answered_in_one_batch(model):
    bounds = switching_lengths(model.backbone)
    assert bounds == (32,)
    keys = {n: batching_key(bounds, n, 8) for n in (10, 25, 26, 27, 32, 33, 90)}
    assert keys[10] == keys[25]  # its last new token is not read: 32 positions
    assert keys[33] == keys[90]
    assert len({keys[n] for n in (25, 26, 27, 32, 33)}) == 5
    assert len({batching_key(bounds, n, None) for n in (10, 25)}) == 2


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "llama3", "linear", "default"])
def test_other_kinds_do_not_depend_on_neighbours(random_backbone, kind):
    """Dynamic scaling begins beyond the positions, which no sequence may exceed."""
    settings = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind in ("yarn", "llama3"):
        settings["original_max_position_embeddings"] = 32
    if kind == "llama3":
        settings |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = random_backbone(
        LlamaConfig, head_dim=12, max_position_embeddings=128, rope_parameters=settings
    )
    model = Clara.from_backbone(folder, CONFIG)
    assert switching_lengths(model.backbone) == ()
    plain = one_sequence.eager(model)
    rows = model.memory_tokens.memory.detach()
    expected = [
        one_sequence.states(model, plain, each.ids, rows)[-4:] for each in inputs_of(model, TEXTS)
    ]
    memory = model.compress(TEXTS).memory
    torch.testing.assert_close(memory, torch.stack(expected), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="longer than the backbone's 128 positions"):
        model.answer_loss([TEXT * 2], [memory], ["salt"])


def test_a_rotary_embedding_for_each_type_of_layer(random_backbone):
    """Gemma 3 has one for windows and one for the rest; only the latter switches here."""
    folder = random_backbone(
        transformers.Gemma3TextConfig,
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": longrope(32),
        },
    )
    model = Clara.from_backbone(folder, CONFIG)
    assert switching_lengths(model.backbone) == (32,)
    plain = one_sequence.eager(model)
    rows = model.memory_tokens.memory.detach()
    try:
        expected = [
            one_sequence.states(model, plain, each.ids, rows)[-4:]
            for each in inputs_of(model, TEXTS)
        ]
    except UnboundLocalError:
        pytest.skip("this release of transformers fails in the second long forward of such a model")
    memory = model.compress(TEXTS).memory
    torch.testing.assert_close(memory, torch.stack(expected), rtol=1e-4, atol=1e-4)
