"""What all prompts begin with is computed once, and answers are what they were without."""

import pytest
import torch
from transformers import GenerationConfig, MistralConfig, Qwen2MoeConfig

from clara.backbone.adapters import ADAPTERS, GENERATOR
from clara.backbone.loading import load_backbone
from clara.config import PromptTemplate
from clara.model import generation
from clara.model.prompt_prefix import can_continue, prefix_ids

from ..backbone.test_merging import new_model

QUESTIONS = ["Where?", "What do people trade for grain every spring?", "Who runs north?"]
TEXTS = ["The river is long.", "A town lies at the river.", "Salt is traded for grain."]


@pytest.fixture
def model(tiny_backbone):
    return new_model(tiny_backbone("llama"))


@pytest.fixture
def each(model):
    """Memory of three questions: prompts of unequal length."""
    memory = model.compress(TEXTS).memory
    return [memory, memory[1:2], memory[1:]]


def without(monkeypatch):
    monkeypatch.setattr(generation, "can_continue", lambda *_: False)


class Lengths:
    """Positions of each forward pass of a backbone."""

    def __init__(self, backbone):
        self.seen = []
        backbone.base_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, arguments, named):
        inputs = named.get("inputs_embeds")
        self.seen.append((named["input_ids"] if inputs is None else inputs).shape[1])


def first_logits(model, questions, memory, adapter=GENERATOR):
    """Logits `[B, V]` of the first new token."""
    prompts = model.memory_prompts(questions, [len(m) for m in memory])
    slots = [m.flatten(0, 1) for m in memory]
    settings = GenerationConfig(
        max_new_tokens=1, return_dict_in_generate=True, output_logits=True, pad_token_id=2
    )
    with torch.no_grad(), model.generating(adapter) as backbone:
        inputs = generation.generation_inputs(model, backbone, prompts, slots, settings, adapter)
        return backbone.generate(**inputs, generation_config=settings).logits[0]


@pytest.mark.parametrize("merged", [False, True])
def test_logits_are_those_of_the_whole_prompt(model, each, monkeypatch, merged):
    if merged:
        assert model.merge_generator()
    for _ in range(2):  # computed, then kept
        found = first_logits(model, QUESTIONS, each)
    alone = [first_logits(model, [q], [m]) for q, m in zip(QUESTIONS, each, strict=True)]
    without(monkeypatch)
    expected = first_logits(model, QUESTIONS, each)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-4, atol=1e-4)


def test_it_is_computed_once(model, each):
    prompts = model.memory_prompts(QUESTIONS, [len(m) for m in each])
    prefix = prompts[0].first_slot
    assert prefix > 20
    lengths = Lengths(model.backbone)
    longest = max(len(prompt.ids) for prompt in prompts)
    first = model.generate(QUESTIONS, each, max_new_tokens=1)
    assert lengths.seen == [prefix, longest - prefix]
    assert model.generate(QUESTIONS, each, max_new_tokens=1) == first
    assert "".join(model.stream(QUESTIONS[1], each[1], max_new_tokens=1)) == first[1]
    assert lengths.seen[2:] == [longest - prefix, len(prompts[1].ids) - prefix]


def test_generation_leaves_it_as_it_was(model, each):
    model.generate(QUESTIONS, each, max_new_tokens=8)
    kept = model.prompt_prefixes._kept[model.backbone].states
    before = [(keys.clone(), values.clone()) for keys, values in kept]
    again = model.generate(QUESTIONS, each, max_new_tokens=8)
    assert again == model.generate(QUESTIONS, each, max_new_tokens=8)
    assert model.prompt_prefixes._kept[model.backbone].states is kept
    for (keys, values), (old_keys, old_values) in zip(kept, before, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)


def in_place(model):
    with torch.no_grad():
        for parameter in model.adapters.parameters(GENERATOR).values():
            parameter.mul_(3)


def fused_update(model):
    """Writes to the generator without a trace in the versions of its parameters."""
    model.adapters.freeze(GENERATOR)
    parameters = list(model.adapters.parameters(GENERATOR).values())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


def trained(model):
    model.train()
    fused_update(model)
    model.adapters.freeze()
    model.eval()


def scaled(model):
    for layer in model.adapters._layers:
        layer.scaling[GENERATOR] *= 3


def rotated(model):
    model.backbone.base_model.rotary_emb.inv_freq.mul_(0.5)


def backbone_weights(model):
    with torch.no_grad():
        model.backbone.base_model.layers[0].mlp.down_proj.weight.mul_(2)


def dtype(model):
    model.to(torch.float64)


@pytest.mark.parametrize("change", [in_place, trained, backbone_weights, scaled, rotated, dtype])
def test_other_weights_compute_it_again(model, each, monkeypatch, change):
    before = first_logits(model, QUESTIONS, each)
    change(model)
    memory = [m.to(model.dtype) for m in each]
    found = first_logits(model, QUESTIONS, memory)
    keys, values = model.prompt_prefixes._kept[model.backbone].states[0]
    assert keys.dtype == values.dtype == model.dtype
    without(monkeypatch)
    expected = first_logits(model, QUESTIONS, memory)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if change is not dtype:
        assert (found - before).abs().max() > 0.01


def test_copies_merged_one_after_the_other_do_not_share_it(model, each, monkeypatch):
    """Weights freed and allocated again may lie where the former did."""
    for _ in range(3):
        assert model.merge_generator()
        found = first_logits(model, QUESTIONS, each)
        with monkeypatch.context() as patch:
            without(patch)
            expected = first_logits(model, QUESTIONS, each)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        in_place(model)
    del found
    model._merged = None
    assert list(model.prompt_prefixes._kept) == []


def test_another_adapter_computes_it_again(model, each, monkeypatch):
    found = [first_logits(model, QUESTIONS, each, name) for name in (*ADAPTERS, None, *ADAPTERS)]
    without(monkeypatch)
    for logits, name in zip(found, (*ADAPTERS, None, *ADAPTERS), strict=True):
        expected = first_logits(model, QUESTIONS, each, name)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_any_template(tiny_backbone, monkeypatch):
    folder = tiny_backbone("llama")
    for user in ("Background:\n{memory}\n\nQuestion: {question}", "{memory}{question}"):
        model = new_model(folder, prompt=PromptTemplate("", user))
        memory = [model.compress(TEXTS).memory]
        found = model.generate(QUESTIONS[:1], memory, max_new_tokens=8)
        with monkeypatch.context() as patch:
            without(patch)
            assert model.generate(QUESTIONS[:1], memory, max_new_tokens=8) == found


def test_prompts_without_memory_have_none(model, each):
    with_memory, bare = model.memory_prompts(QUESTIONS[:2], [2, 0])
    assert prefix_ids([with_memory]) == with_memory.ids[: with_memory.first_slot]
    assert prefix_ids([bare]) == prefix_ids([with_memory, bare]) == []
    lengths = Lengths(model.backbone)
    model.answer_from_text(QUESTIONS[:1], [TEXTS], max_new_tokens=1)
    assert lengths.seen == [model.text_prompt_tokens(QUESTIONS[0], TEXTS)]


@pytest.mark.parametrize("mode", [True, False])
def test_the_cache_stays_the_same_object_in_training(model, each, mode):
    cache = model.prompt_prefixes
    first_logits(model, QUESTIONS, each)
    assert len(cache._kept) == 1
    model.train(mode)
    assert model.prompt_prefixes is cache
    assert len(cache._kept) == 0


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_is_kept_of_what_trains(model, each, monkeypatch, mode):
    model.train(mode)
    model.adapters.freeze(GENERATOR)
    before = first_logits(model, QUESTIONS, each)
    assert len(model.prompt_prefixes._kept) == 0
    fused_update(model)
    with model.evaluating():
        found = first_logits(model, QUESTIONS, each)
    assert (found - before).abs().max() > 0.01
    without(monkeypatch)
    torch.testing.assert_close(found, first_logits(model, QUESTIONS, each), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 8},
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_other_ways_to_generate_do_without(model, each, monkeypatch, settings, stored):
    assert can_continue(model.backbone, GenerationConfig())
    asked = GenerationConfig(max_new_tokens=6, **({} if stored else settings))
    if stored:
        for name, value in settings.items():
            monkeypatch.setattr(model.backbone.generation_config, name, value)
    assert not can_continue(model.backbone, asked)
    if settings.keys() & {"num_beams", "prefill_chunk_size"}:
        return  # other answers, and none at all from embeddings
    alone = (QUESTIONS[:1], each[:1])  # assisted generation takes one question
    found = model.generate(*alone, generation_config=asked)
    assert len(model.prompt_prefixes._kept) == 0
    monkeypatch.undo()
    assert model.generate(*alone, max_new_tokens=6) == found


def test_autocast_computes_its_own(model, each, monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        rounded = first_logits(model, QUESTIONS, each)
    found = first_logits(model, QUESTIONS, each)
    without(monkeypatch)
    expected = first_logits(model, QUESTIONS, each)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (rounded - expected).abs().max() > 1e-3


def test_under_inference_mode(tiny_backbone, each, model):
    expected = model.generate(QUESTIONS, each, max_new_tokens=8)
    with torch.inference_mode():
        made = new_model(tiny_backbone("llama"))
        assert made.generate(QUESTIONS, each, max_new_tokens=8) == expected
        assert len(made.prompt_prefixes._kept) == 0
        assert model.generate(QUESTIONS, each, max_new_tokens=8) == expected
        assert model.merge_generator()
        assert model.generate(QUESTIONS, each, max_new_tokens=8) == expected
    assert model.generate(QUESTIONS, each, max_new_tokens=8) == expected


def test_states_made_under_inference_mode_serve_outside(model, each):
    with torch.inference_mode():
        expected = model.generate(QUESTIONS, each, max_new_tokens=8)
    kept = model.prompt_prefixes._kept[model.backbone]
    assert model.generate(QUESTIONS, each, max_new_tokens=8) == expected
    assert model.prompt_prefixes._kept[model.backbone] is kept


@pytest.mark.parametrize(
    ("family", "settings", "possible"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("mistral", {}, False),  # its window slides
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, False),
        (
            "phi3",
            {
                "rope_parameters": {"full_attention": {"rope_type": "longrope"}},
                "sliding_window": None,
            },
            False,
        ),
    ],
)
def test_backbones_it_is_right_for(tiny_backbone, family, settings, possible):
    backbone = new_model(tiny_backbone(family)).backbone
    for name, value in settings.items():
        setattr(backbone.config, name, value)
    assert can_continue(backbone, GenerationConfig()) is possible


def test_a_family_with_windows_whose_window_is_off(random_backbone):
    backbone = new_model(random_backbone(MistralConfig, sliding_window=None)).backbone
    assert can_continue(backbone, GenerationConfig())


def test_a_window_that_only_the_mask_has(random_backbone):
    """Its cache is the plain one, and says nothing of it."""
    settings = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    kinds = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    folder = random_backbone(
        Qwen2MoeConfig, use_sliding_window=True, sliding_window=24, **kinds, **settings
    )
    backbone, _ = load_backbone(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert not can_continue(backbone, GenerationConfig())
