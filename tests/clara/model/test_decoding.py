"""Our greedy loop gives the tokens of transformers' `generate`, or leaves the work to it."""

import contextlib

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, MistralConfig

from clara import Clara, ClaraConfig
from clara.backbone import decoder_layout
from clara.backbone.decoder_layout import decoder_of
from clara.model import generation
from clara.model.decoding import decoder_for
from clara_kernels.build import native

from ..backbone.test_merging import new_model
from ..random_adapters import draw_adapters

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WORDS = ("river", "town", "salt", "grain", "north", "spring", "people", "trade", "long", "lies")
GREEDY = GenerationConfig(max_new_tokens=4, do_sample=False)

pytestmark = pytest.mark.skipif(native is None, reason="nothing was compiled")


def questions(count):
    """Questions of unequal length, no two alike."""
    return [
        " ".join(WORDS[(row + place * place) % 10] for place in range(1 + row % 7)) + f" {row}?"
        for row in range(count)
    ]


def memory_of(model, count):
    memory = model.compress([f"The {word} is {row}." for row, word in enumerate(WORDS)]).memory
    return [memory[row % 5 : row % 5 + row % 4] for row in range(count)]


@contextlib.contextmanager
def by_transformers(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "decoder_for", lambda *_: None)
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
    step = decoder_layout.Decoder.step
    monkeypatch.setattr(
        decoder_layout.Decoder, "step", lambda *given: steps.append(1) or step(*given)
    )
    settings = GenerationConfig(max_new_tokens=1500, min_new_tokens=1500, do_sample=False)
    pieces = model.stream("Where?", memory, generation_config=settings)
    next(pieces)
    pieces.close()
    assert len(steps) < 1499


def test_gradients_and_later_training_see_other_weights(model, decoded):
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
        query = decoder_of(backbone).weights.layers[0].query
    assert query.weight.dtype == getattr(torch, dtype)
    assert query.down.abs().max() > 0
    assert len(set(model.generate(questions(8), memory_of(model, 8), max_new_tokens=8))) > 5
    assert decoded


SETTINGS = {
    "sampled": {"do_sample": True},
    "beams": {"num_beams": 2},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "repetition": {"repetition_penalty": 1.2},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5]]},
    "suppressed": {"suppress_tokens": [5]},
    "biased": {"sequence_bias": [[[5], 2.0]]},
    "forced end": {"forced_eos_token_id": 2},
    "decay": {"exponential_decay_length_penalty": (2, 1.5)},
    "clock": {"max_time": 60.0},
    "cache": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_left_to_generate(model, name):
    assert decoder_for(model.backbone, GREEDY) is not None
    asked = GenerationConfig(max_new_tokens=4, **SETTINGS[name])
    assert decoder_for(model.backbone, asked) is None
    if name != "cache":  # a backbone that asks for a cache by itself is refused elsewhere
        model.backbone.generation_config.update(**SETTINGS[name])
        assert decoder_for(model.backbone, GREEDY) is None


def test_neutral_values_are_not(model):
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "remove_invalid_values": False}
    assert decoder_for(model.backbone, GenerationConfig(max_new_tokens=4, **neutral)) is not None


def test_other_backbones_are_left_to_generate(tiny_backbone, random_backbone, model):
    assert decoder_of(new_model(tiny_backbone("phi3")).backbone) is None
    windowed = new_model(tiny_backbone("mistral")).backbone
    assert decoder_for(windowed, GREEDY) is None
    assert decoder_of(new_model(tiny_backbone("llama")).backbone.double()) is None
    gelu = random_backbone(type(model.backbone.config), hidden_act="gelu")
    assert decoder_of(new_model(gelu).backbone) is None
    gpt2 = {"n_embd": 48, "n_layer": 2, "n_head": 4}
    assert decoder_of(new_model(random_backbone(GPT2Config, **gpt2)).backbone) is None


def test_hooks_and_autocast_are_left_to_generate(model):
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder_of(model.backbone) is None
    handle = model.backbone.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert decoder_of(model.backbone) is None
    handle.remove()
    assert decoder_of(model.backbone) is not None


def test_nothing_compiled_is_left_to_generate(model, monkeypatch):
    monkeypatch.setattr(decoder_layout, "build_info", lambda: {"compiled": False})
    assert decoder_of(model.backbone) is None
