"""Each setting of GenerationConfig is honoured, changes no answer, or is refused with advice."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig

from clara.backbone.generation_settings import HARMLESS, HONOURED, REFUSED, generation_settings

from .speaking import preferring

QUESTIONS = ["Where?", "What is the name of the longest river of the country?"]
LETTERS = "abcd"


@pytest.fixture(scope="module")
def model(reference_model):
    return reference_model


@pytest.fixture(scope="module")
def memory(model):
    memory = model.compress(["The river is long.", "Salt is traded for grain."]).memory
    return [memory, memory[:1]]


@pytest.fixture(scope="module")
def letters(model):
    """The token of each letter."""
    found = {}
    for letter in LETTERS:
        (found[letter],) = model.tokenizer.encode_texts([letter])[0].ids
    return found


def written(model, memory, letters, **settings):
    """Answers to two questions by a model that likes `a` best, then `b`, `c`, `d`."""
    likes = {letters[letter]: 10.0 - rank for rank, letter in enumerate(LETTERS)}
    likes[model.tokenizer.eos_id] = 1.0
    with preferring(model, likes):
        config = GenerationConfig(**{"max_new_tokens": 4, **settings})
        return model.generate(QUESTIONS, memory, generation_config=config)


def test_every_setting_of_this_transformers_is_known():
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    kinds = [HONOURED, HARMLESS, set(REFUSED), {"num_return_sequences"}]
    assert names - set().union(*kinds) == set()
    assert sum(map(len, kinds)) == len(set().union(*kinds)), "a setting is of two kinds"


# Honoured

EXPECTED = {
    "max_new_tokens": ({"max_new_tokens": 2}, "aa"),
    "max_time": ({"max_time": 0}, "a"),
    "stop_strings": ({"stop_strings": "aaa"}, ""),
    "do_sample": ({"do_sample": True, "temperature": 0.01}, "aaaa"),
    "temperature": ({"do_sample": True, "temperature": np.float32(0.01)}, "aaaa"),
    "top_k": ({"do_sample": True, "top_k": np.int64(1)}, "aaaa"),
    "top_p": ({"do_sample": True, "top_p": 0.1}, "aaaa"),
    "top_h": ({"do_sample": True, "top_h": 0.01}, "aaaa"),
    "min_p": ({"do_sample": True, "min_p": 0.9}, "aaaa"),
    "typical_p": ({"do_sample": True, "typical_p": 0.1}, "bbbb"),
    "epsilon_cutoff": ({"do_sample": True, "epsilon_cutoff": 0.5}, "aaaa"),
    "eta_cutoff": ({"do_sample": True, "eta_cutoff": 0.9}, "aaaa"),
    "repetition_penalty": ({"repetition_penalty": 2}, "abcd"),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": np.int64(1)}, "abcd"),
    "bad_words_ids": ({"bad_words_ids": [["a"]]}, "bbbb"),
    "suppress_tokens": ({"suppress_tokens": ["a", "b"]}, "cccc"),
    "begin_suppress_tokens": ({"begin_suppress_tokens": ["a"]}, "baaa"),
    "sequence_bias": ({"sequence_bias": [[["b"], 5.0]]}, "bbbb"),
    "forced_eos_token_id": ({"forced_eos_token_id": "c"}, "aaac"),
    "exponential_decay_length_penalty": ({"exponential_decay_length_penalty": (1, 20.0)}, "aa"),
    "eos_token_id": ({"eos_token_id": "a"}, "a"),
    "min_new_tokens": ({"eos_token_id": "a", "min_new_tokens": np.int64(3)}, "bbba"),
    "pad_token_id": ({"pad_token_id": 0}, "aaaa"),
    "renormalize_logits": ({"renormalize_logits": True}, "aaaa"),
    "remove_invalid_values": ({"remove_invalid_values": True}, "aaaa"),
    "num_beams": ({"num_beams": 2}, "aaaa"),
    "early_stopping": ({"num_beams": 2, "early_stopping": True}, "aaaa"),
    "length_penalty": ({"num_beams": 2, "length_penalty": 2}, "aaaa"),
    "cache_implementation": ({"cache_implementation": "static"}, "aaaa"),
    "prompt_lookup_num_tokens": ({"prompt_lookup_num_tokens": 2}, "aaaa"),
    "max_matching_ngram_size": (
        {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1},
        "aaaa",
    ),
}


DRAFTING = {"prompt_lookup_num_tokens", "max_matching_ngram_size"}


def test_all_that_is_honoured_is_tried():
    elsewhere = {"max_length", "min_length", "watermarking_config"}
    assert set(EXPECTED) | elsewhere == HONOURED


@pytest.mark.parametrize("name", EXPECTED)
def test_honoured(model, memory, letters, name):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("not in this version of transformers")
    if name in DRAFTING and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("earlier versions may draft from prompts of token ids alone")

    def ids(value):
        if isinstance(value, list):
            return [ids(each) for each in value]
        return letters.get(value, value) if isinstance(value, str) else value

    settings, expected = EXPECTED[name]
    settings = {key: ids(value) for key, value in settings.items()}
    assert written(model, memory, letters, **settings) == [expected] * 2


def test_drafting_that_transformers_cannot_do(model, memory, monkeypatch):
    """transformers 5.0 looks for a token id before the answer."""

    def fail(**arguments):
        raise IndexError("index -1 is out of bounds")

    monkeypatch.setattr(model.backbone, "generate", fail)
    given = GenerationConfig(prompt_lookup_num_tokens=2)
    message = "prompt_lookup_num_tokens cannot be used with memory in transformers .*; leave it out"
    with pytest.raises(ValueError, match=message):
        model.generate(QUESTIONS, memory, generation_config=given)
    with pytest.raises(ValueError, match=message):
        list(model.stream(QUESTIONS[0], memory[0], generation_config=given))
    with pytest.raises(IndexError, match="index -1"):  # greedy answers are decoded by us
        model.generate(QUESTIONS, memory, generation_config=GenerationConfig(do_sample=True))


@pytest.mark.parametrize(
    "config",
    [WatermarkingConfig(bias=20.0), SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3])],
)
def test_watermarks(model, memory, config):
    sampled = isinstance(config, SynthIDTextWatermarkingConfig)
    plain = GenerationConfig(max_new_tokens=12, do_sample=sampled)
    marked = GenerationConfig(max_new_tokens=12, do_sample=sampled, watermarking_config=config)
    answers = []
    for settings in (plain, marked, marked):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            answers.append(model.generate(QUESTIONS, memory, generation_config=settings))
    assert answers[1] == answers[2] != answers[0]


def test_a_penalty_on_repetitions_does_not_depend_on_the_batch(model, memory, letters):
    """transformers takes as many tokens out of the answer as there is padding."""
    lengths = [model.prompt_tokens(q, len(m)) for q, m in zip(QUESTIONS, memory, strict=True)]
    assert len(set(lengths)) == 2
    assert written(model, memory, letters, repetition_penalty=2.0) == ["abcd"] * 2


# Lengths


@pytest.mark.parametrize("batch_size", [1, 2])
def test_max_length_counts_prompt_and_answer(model, memory, letters, batch_size):
    lengths = [model.prompt_tokens(q, len(m)) for q, m in zip(QUESTIONS, memory, strict=True)]
    limit = max(lengths) + 3
    given = GenerationConfig(max_length=np.int64(limit))
    likes = {letters["a"]: 1.0}
    with preferring(model, likes):
        answers = model.generate(QUESTIONS, memory, generation_config=given, batch_size=batch_size)
        streamed = "".join(model.stream(QUESTIONS[0], memory[0], generation_config=given))
    assert [len(answer) for answer in answers] == [limit - length for length in lengths]
    assert streamed == answers[0]
    assert given.max_length == limit


def test_min_length_counts_prompt_and_answer(model, memory, letters):
    lengths = [model.prompt_tokens(q, len(m)) for q, m in zip(QUESTIONS, memory, strict=True)]
    least = max(lengths) + 3
    likes = {letters["a"]: 1.0, model.tokenizer.eos_id: 2.0}
    with preferring(model, likes):
        for given, expected in (
            ({"min_length": least}, [least - length for length in lengths]),
            ({"min_length": min(lengths)}, [0, 0]),
            ({"min_length": least, "min_new_tokens": 2}, [2, 2]),
        ):
            config = GenerationConfig(**given)
            answers = model.generate(QUESTIONS, memory, generation_config=config)
            assert [len(answer) for answer in answers] == [max(n, 0) for n in expected]


def test_which_limit_wins(model, memory, letters):
    with preferring(model, {letters["a"]: 1.0}):
        given = GenerationConfig(max_length=20, max_new_tokens=5)
        assert model.generate(QUESTIONS, memory, generation_config=given) == ["a" * 5] * 2
        answers = model.generate(QUESTIONS, memory, generation_config=given, max_new_tokens=3)
        assert answers == ["aaa"] * 2
        assert model.generate(QUESTIONS, memory) == ["a" * 128] * 2


def test_max_length_that_leaves_no_room(model, memory):
    row = 1
    tokens = model.prompt_tokens(QUESTIONS[row], 1)
    shorter = model.prompt_tokens("Where?", 1)
    assert shorter < tokens
    given = GenerationConfig(max_length=tokens)
    message = (
        f"the prompt of question 1 has {tokens} tokens, the budget is {tokens - 1} "
        rf"\(generation_config.max_length {tokens} counts the prompt too .*max_new_tokens"
    )
    with pytest.raises(ValueError, match=message):
        model.generate(["Where?", QUESTIONS[1]], [memory[1]] * 2, generation_config=given)
    window = model.backbone.config.max_position_embeddings
    message = rf"max_length {window + 1} is above the backbone's {window} positions"
    with pytest.raises(ValueError, match=message):
        model.generate(QUESTIONS, memory, generation_config=GenerationConfig(max_length=window + 1))


# Harmless

VALUES = {
    "use_cache": False,
    "cache_config": {"backend": "hqq"},
    "max_cache_len": 512,
    "transformers_version": "4.0.0",
    "decoder_start_token_id": 5,
    "bos_token_id": 5,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "compile_config": None,
    "continuous_batching_config": None,
}


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_harmless(model, memory, name):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("not in this version of transformers")
    expected = model.generate(QUESTIONS, memory, max_new_tokens=6)
    given = GenerationConfig(max_new_tokens=6, **{name: VALUES.get(name, True)})
    assert model.generate(QUESTIONS, memory, generation_config=given) == expected


# Refused

UNUSABLE = {
    "guidance_scale": 1.5,
    "prefill_chunk_size": 4,
    "encoder_repetition_penalty": 1.2,
    "encoder_no_repeat_ngram_size": 2,
    "forced_bos_token_id": 5,
    "assistant_early_exit": 1,
    "penalty_alpha": 0.5,
    "dola_layers": "low",
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "constraints": [1],
    "force_words_ids": [[5]],
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(model, memory, name):
    expected = model.generate(QUESTIONS, memory, max_new_tokens=6)
    given = GenerationConfig(max_new_tokens=6, num_beams=1)
    setattr(given, name, UNUSABLE.get(name, True))
    message = rf"generation_config\.{name} cannot be used with memory: .*leave it out"
    with pytest.raises(ValueError, match=message):
        model.generate(QUESTIONS, memory, generation_config=given)
    with pytest.raises(ValueError, match=message):
        model.stream(QUESTIONS[0], memory[0], generation_config=given)
    neutral = REFUSED[name][0]
    for value in (None, *neutral):
        setattr(given, name, value)
        generation_settings(model.backbone, model.tokenizer, given, None)
    assert model.generate(QUESTIONS, memory, max_new_tokens=6) == expected


@pytest.mark.parametrize("name", ["max_new_token", "something_of_a_later_version"])
def test_unknown_settings_are_refused(model, memory, name):
    given = GenerationConfig(**{name: 5})
    message = rf"generation_config\.{name} is not a setting that CLaRa knows; leave it out"
    with pytest.raises(ValueError, match=message):
        model.generate(QUESTIONS, memory, generation_config=given)
    setattr(given, name, None)
    generation_settings(model.backbone, model.tokenizer, given, None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("offloaded", "'offloaded' needs a GPU"),
        ("offloaded_static", "'offloaded_static' needs a GPU"),
        ("paged", "must be one of 'dynamic', 'static', .*; got 'paged'"),
    ],
)
def test_caches_that_cannot_be_had(model, memory, kind, message):
    given = GenerationConfig(cache_implementation=kind)
    with pytest.raises(ValueError, match=f"cache_implementation.*{message}"):
        model.generate(QUESTIONS, memory, generation_config=given)


@pytest.mark.parametrize("stored", ["max_length", "stop_strings", "guidance_scale"])
def test_what_is_stored_with_the_backbone_is_not_passed_over(model, memory, monkeypatch, stored):
    monkeypatch.setattr(model.backbone.generation_config, stored, 7)
    with pytest.raises(ValueError, match=rf"model\.backbone\.generation_config\.{stored} "):
        model.generate(QUESTIONS, memory)


def test_a_dictionary_is_no_generation_config(model, memory):
    with pytest.raises(TypeError, match=r"generation_config must be a GenerationConfig, got {'"):
        model.generate(QUESTIONS, memory, generation_config={"max_new_tokens": 4})


# Numbers

INTEGERS = ("max_new_tokens", "max_prompt_tokens", "batch_size")


@pytest.mark.parametrize("name", INTEGERS)
def test_arguments_are_integers(model, memory, name):
    expected = model.generate(QUESTIONS, memory, **{"max_new_tokens": 2, name: 200})[:1]
    for value in (True, 4.0, np.float64(2), np.True_, "4", torch.tensor(4)):
        with pytest.raises(
            TypeError, match=f"{name} must be an integer, got {re.escape(repr(value))}"
        ):
            model.generate(QUESTIONS, memory, **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        model.generate(QUESTIONS, memory, **{name: 0})
    got = model.generate(QUESTIONS, memory, **{"max_new_tokens": 2, name: np.int64(200)})
    assert got[:1] == expected


@pytest.mark.parametrize("value", [True, 4.0, "4"])
def test_integers_of_the_settings(model, memory, value):
    for name in ("max_length", "max_new_tokens", "min_new_tokens", "num_beams", "top_k"):
        given = GenerationConfig()
        setattr(given, name, value)
        with pytest.raises(TypeError, match=rf"generation_config\.{name} must be an integer"):
            model.generate(QUESTIONS, memory, generation_config=given)


@pytest.mark.parametrize("value", [5, 1.5, (5,), (5, "2"), (True, 2.0)])
def test_a_penalty_that_is_no_pair(model, memory, value):
    given = GenerationConfig(exponential_decay_length_penalty=value)
    message = r"generation_config\.exponential_decay_length_penalty must be a pair, .*got "
    with pytest.raises(ValueError, match=message + re.escape(repr(value))):
        model.generate(QUESTIONS, memory, generation_config=given)


@pytest.mark.parametrize("value", [True, "1", float("nan")])
def test_numbers_of_the_settings(model, memory, value):
    given = GenerationConfig(do_sample=True)
    given.temperature = value
    with pytest.raises((TypeError, ValueError), match=r"generation_config\.temperature must be a"):
        model.generate(QUESTIONS, memory, generation_config=given)


def test_batch_tokens_is_an_integer(model):
    expected = model.compress(["The river is long."]).memory
    for value in (True, 64.0):
        with pytest.raises(TypeError, match=f"batch_tokens must be an integer, got {value}"):
            model.compress(["a"], batch_tokens=value)
        with pytest.raises(TypeError, match=f"batch_tokens must be an integer, got {value}"):
            model.encode_queries(["a"], batch_tokens=value)
    again = model.compress(["The river is long."], batch_tokens=np.int32(64)).memory
    assert torch.equal(again, expected)


def test_top_k_of_numpy(model):
    documents = model.compress(["The river is long.", "Salt.", "Grain."])
    expected = model.rank(["Where?"], documents, top_k=2)
    found = model.rank(["Where?"], documents, top_k=np.int64(2))
    assert torch.equal(found.indices, expected.indices)
    (answer,) = model.answer(["Where?"], documents, top_k=np.int8(1), max_new_tokens=2)
    assert len(answer.documents) == 1
