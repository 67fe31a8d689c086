"""Our greedy loop gives the tokens of transformers' `generate`, or leaves the work to it."""

import contextlib

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, MistralConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from clara import Clara, ClaraConfig
from clara.backbone import decoder_layout
from clara.backbone.decoder_layout import Undecodable, decoder_weights
from clara.model import generation
from clara.model.decoding import merged_settings, weights_for
from clara_kernels.decoding import Decoder

from ..backbone.test_merging import new_model
from ..random_adapters import draw_adapters

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WORDS = ("river", "town", "salt", "grain", "north", "spring", "people", "trade", "long", "lies")
GREEDY = GenerationConfig(max_new_tokens=4, do_sample=False)


def questions(count):
    """Questions of unequal length, no two alike."""
    return [
        " ".join(WORDS[(row + place * place) % 10] for place in range(1 + row % 7)) + f" {row}?"
        for row in range(count)
    ]


def memory_of(model, count):
    memory = model.compress([f"The {word} is {row}." for row, word in enumerate(WORDS)]).memory
    return [memory[row % 5 : row % 5 + row % 4] for row in range(count)]


def refuse(*_):
    raise Undecodable("the test says so")


@contextlib.contextmanager
def by_transformers(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "weights_for", refuse)
        yield


@pytest.fixture
def decoded(monkeypatch):
    """How many batches our own loop has answered."""
    counts = []
    own = generation.decode
    monkeypatch.setattr(generation, "decode", lambda *a, **k: counts.append(1) or own(*a, **k))
    return counts


@pytest.fixture
def backbones(tiny_backbone, random_backbone):
    """Folders by family; that of Mistral has no window, as its later releases do."""

    def of(family):
        if family == "mistral":
            return random_backbone(MistralConfig, sliding_window=None)
        return tiny_backbone(family)

    return of


@pytest.fixture
def model(tiny_backbone):
    return new_model(tiny_backbone("llama"))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate(backbones, monkeypatch, decoded, family, merged):
    """For 200 prompts over the families, of unequal length, alone and in batches."""
    model = new_model(backbones(family))
    if merged:
        assert model.merge_generator()
    asked, memory = questions(25), memory_of(model, 25)
    settings = GenerationConfig(max_new_tokens=12, min_new_tokens=12, do_sample=False)
    for batch_size in (1, 8):
        found = model.generate(asked, memory, generation_config=settings, batch_size=batch_size)
        count = len(decoded)
        with by_transformers(monkeypatch):
            expected = model.generate(
                asked, memory, generation_config=settings, batch_size=batch_size
            )
        assert found == expected
        assert count == len(decoded) > 0
    assert len(set(found)) > 15


def test_the_bare_backbone_answers_without_adapters(model, monkeypatch, decoded):
    texts = ["The river is long.", "A town lies at the river."]
    found = model.answer_from_text(questions(2), [texts, texts[:1]], max_new_tokens=12)
    assert decoded
    with by_transformers(monkeypatch):
        assert model.answer_from_text(questions(2), [texts, texts[:1]], max_new_tokens=12) == found


def test_answers_end_where_generate_ends_them(model, monkeypatch, decoded):
    """At stop tokens and at stop strings, each row at its own place."""
    asked, memory = questions(12), memory_of(model, 12)
    longest = model.generate(asked, memory, max_new_tokens=24)
    letters = sorted({letter for text in longest for letter in text if letter.isalpha()})
    ids = {letter: model.tokenizer.tokenizer.encode(letter)[-1] for letter in letters}
    for settings in (
        GenerationConfig(max_new_tokens=24, stop_strings=letters[:2]),
        GenerationConfig(max_new_tokens=24, eos_token_id=list(ids.values())[::3]),
        GenerationConfig(max_new_tokens=24, eos_token_id=list(ids.values()), min_new_tokens=5),
        GenerationConfig(max_length=200),
    ):
        count = len(decoded)
        found = model.generate(asked, memory, generation_config=settings)
        assert len(decoded) > count
        with by_transformers(monkeypatch):
            assert model.generate(asked, memory, generation_config=settings) == found
    assert len({len(text) for text in found}) > 3


def test_a_stream_is_decoded_too(model, decoded):
    (memory,) = memory_of(model, 2)[1:]
    pieces = list(model.stream("Where?", memory, max_new_tokens=24))
    assert decoded == [1]
    assert "".join(pieces) == model.generate(["Where?"], [memory], max_new_tokens=24)[0]


def test_a_closed_stream_ends_decoding(model, monkeypatch):
    (memory,) = memory_of(model, 2)[1:]
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda *given: steps.append(1) or step(*given))
    settings = GenerationConfig(max_new_tokens=1500, min_new_tokens=1500, do_sample=False)
    pieces = model.stream("Where?", memory, generation_config=settings)
    next(pieces)
    pieces.close()
    assert len(steps) < 1499


def test_later_weights_are_seen(model, decoded):
    """Each batch reads the weights as they are then."""
    asked, memory = questions(3), memory_of(model, 3)
    before = model.generate(asked, memory, max_new_tokens=12)
    draw_adapters(model, seed=5)
    assert model.generate(asked, memory, max_new_tokens=12) != before
    draw_adapters(model, seed=4)
    assert model.generate(asked, memory, max_new_tokens=12) == before
    assert len(decoded) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_read_in_the_dtype_of_the_model(tiny_backbone, decoded, dtype):
    settings = {"compression_rate": 16, "document_length": 64, "lora_rank": 4, "dtype": dtype}
    config = ClaraConfig(**settings)
    model = Clara.from_backbone(tiny_backbone("llama"), config, device="cpu")
    draw_adapters(model, seed=4)
    with model.generating("generator") as backbone:
        query = decoder_weights(backbone).layers[0].query
    assert query.weight.dtype == getattr(torch, dtype)
    assert query.down.abs().max() > 0
    assert len(set(model.generate(questions(8), memory_of(model, 8), max_new_tokens=8))) > 5
    assert decoded


SETTINGS = {
    "sampled": ({"do_sample": True}, "not greedy"),
    "beams": ({"num_beams": 2}, "not greedy"),
    "assisted": ({"prompt_lookup_num_tokens": 2}, "not greedy"),
    "repetition": ({"repetition_penalty": 1.2}, "repetition_penalty is set"),
    "n-grams": ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size is set"),
    "bad words": ({"bad_words_ids": [[5]]}, "bad_words_ids is set"),
    "suppressed": ({"suppress_tokens": [5]}, "suppress_tokens is set"),
    "begun": ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens is set"),
    "biased": ({"sequence_bias": [[[5], 2.0]]}, "sequence_bias is set"),
    "forced end": ({"forced_eos_token_id": 2}, "forced_eos_token_id is set"),
    "decay": (
        {"exponential_decay_length_penalty": (2, 1.5)},
        "exponential_decay_length_penalty is set",
    ),
    "clock": ({"max_time": 60.0}, "max_time is set"),
    "cache": ({"cache_implementation": "static"}, "its cache"),
}


def reason(backbone, settings=GREEDY):
    """Why `generate` answers; None if our loop does."""
    try:
        weights_for(backbone, merged_settings(backbone, settings))
    except Undecodable as found:
        return str(found)
    return None


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_left_to_generate(model, name):
    settings, why = SETTINGS[name]
    assert reason(model.backbone) is None
    assert why in reason(model.backbone, GenerationConfig(max_new_tokens=4, **settings))
    model.backbone.generation_config.update(**settings)
    assert (name == "sampled") == (reason(model.backbone) is None)  # GREEDY says do_sample=False


def test_neutral_values_are_not(model):
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "remove_invalid_values": False}
    model.backbone.generation_config.update(repetition_penalty=1.3, do_sample=True)
    assert reason(model.backbone, GenerationConfig(do_sample=False, **neutral)) is None


def test_settings_of_the_backbone_count(model, monkeypatch, decoded):
    asked, memory = questions(6), memory_of(model, 6)
    before = model.generate(asked, memory, max_new_tokens=12)
    ids = {i for text in before for i in model.tokenizer.tokenizer.encode(text)}
    model.backbone.generation_config.update(eos_token_id=sorted(ids), min_new_tokens=9)
    found = model.generate(asked, memory, max_new_tokens=12)
    assert len(decoded) == 2
    with by_transformers(monkeypatch):
        assert model.generate(asked, memory, max_new_tokens=12) == found


@pytest.mark.parametrize("ends", [[-1], [10_000], [-1, 10_000, 7]])
def test_ends_outside_the_vocabulary_end_nothing(model, monkeypatch, ends):
    asked, memory = questions(6), memory_of(model, 6)
    settings = GenerationConfig(max_new_tokens=9, min_new_tokens=4, eos_token_id=ends)
    found = model.generate(asked, memory, generation_config=settings)
    assert all(found)
    with by_transformers(monkeypatch):
        assert model.generate(asked, memory, generation_config=settings) == found


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_the_program_changes_nothing(model, dtype):
    asked, memory = questions(6), memory_of(model, 6)
    expected = model.generate(asked, memory, max_new_tokens=8)
    torch.set_default_dtype(dtype)
    try:
        assert model.generate(asked, memory, max_new_tokens=8) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_cache_grows_with_the_answer(model, monkeypatch):
    """Past the room that it begins with, for sequences of unequal length."""
    asked, memory = questions(3), memory_of(model, 3)
    settings = GenerationConfig(max_new_tokens=230, min_new_tokens=230, do_sample=False)
    capacities, step = set(), Decoder.step

    def watched(own, cache, *given):
        capacities.add(cache.capacity)
        return step(own, cache, *given)

    monkeypatch.setattr(Decoder, "step", watched)
    found = model.generate(asked, memory, generation_config=settings)
    assert len(capacities) == 2
    with by_transformers(monkeypatch):
        assert model.generate(asked, memory, generation_config=settings) == found


def test_other_backbones_are_left_to_generate(tiny_backbone, random_backbone, model):
    gelu = random_backbone(type(model.backbone.config), hidden_act="gelu")
    gpt2 = random_backbone(GPT2Config, n_embd=48, n_layer=2, n_head=4)
    for why, backbone in {
        "Phi3Model is of another layout": new_model(tiny_backbone("phi3")).backbone,
        "GPT2Model is of another layout": new_model(gpt2).backbone,
        "torch.float64": new_model(tiny_backbone("llama")).backbone.double(),
        "not SiLU": new_model(gelu).backbone,
        "its cache": new_model(tiny_backbone("mistral")).backbone,
    }.items():
        assert why in reason(backbone)


class OtherNorm(LlamaRMSNorm):
    pass


class Wrapped(torch.Tensor):
    pass


PATCHES = {
    "hook": (
        lambda b: b.model.layers[1].mlp.register_forward_hook(print),
        "a LlamaMLP has hooks",
    ),
    "hook of a linear layer": (
        lambda b: b.model.layers[1].mlp.up_proj.register_forward_pre_hook(print),
        "a MergingLinear has hooks",
    ),
    "forward": (
        lambda b: setattr(b.model.layers[2].self_attn, "forward", print),
        "forward of a LlamaAttention was replaced",
    ),
    "forward of a linear layer": (
        lambda b: setattr(b.model.layers[2].self_attn.q_proj, "forward", print),
        "forward of a MergingLinear was replaced",
    ),
    "norm": (
        lambda b: setattr(b.model.layers[0], "input_layernorm", OtherNorm(48)),
        "OtherNorm is of another layout",
    ),
    "final norm": (
        lambda b: setattr(b.model, "norm", OtherNorm(48)),
        "OtherNorm is of another layout",
    ),
    "activation": (
        lambda b: setattr(b.model.layers[0].mlp, "act_fn", torch.nn.GELU()),
        "not SiLU",
    ),
    "fewer layers": (
        lambda b: setattr(b.config, "num_hidden_layers", 2),
        "not all layers are used",
    ),
    "weights": (
        lambda b: setattr(
            b.model.layers[0].mlp.up_proj.base_layer,
            "weight",
            torch.nn.Parameter(torch.randn(96, 48).as_subclass(Wrapped), requires_grad=False),
        ),
        "a weight is a Wrapped",
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patched_backbone_is_left_to_generate(model, name):
    patch, why = PATCHES[name]
    assert reason(model.backbone) is None
    patch(model.backbone)
    assert why in reason(model.backbone)


def test_what_holds_everywhere_is_left_to_generate(model):
    with torch.autocast("cpu", torch.bfloat16):
        assert reason(model.backbone) == "autocast is on"
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert reason(model.backbone) == "PyTorch has global hooks"
    finally:
        handle.remove()
    assert reason(model.backbone) is None


def test_nothing_compiled_is_left_to_generate(model, monkeypatch, caplog, decoded):
    monkeypatch.setattr(decoder_layout, "build_info", lambda: {"compiled": False})
    caplog.set_level("DEBUG", "clara")
    model.generate(questions(1), memory_of(model, 1), max_new_tokens=2)
    assert not decoded
    assert "transformers' generate answers, not our decoder: clara_kernels was not" in caplog.text
