"""Check the settings of transformers' `GenerationConfig` for prompts with memory.

The prompt reaches the backbone as embeddings, not as token ids. So a setting is honoured, or it
changes no answer, or it is refused with advice. A setting that only a later transformers knows is
refused until this module knows it; so is a misspelt name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode

from clara.backbone.stopping import AnswerReader
from clara.errors.checks import as_integer, as_number, is_integer, is_number
from clara.text.prompts import AnswerEnd, answer_end
from clara.text.tokenizer import SafeTokenizer

MAX_NEW_TOKENS = 128

SAMPLING = frozenset(
    {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    }
)
"""Settings of sampling, which say nothing to greedy answers."""

HONOURED = SAMPLING | frozenset(
    {
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "early_stopping",
        "max_time",
        "stop_strings",
        "do_sample",
        "num_beams",
        "cache_implementation",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "renormalize_logits",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
        "watermarking_config",
        "pad_token_id",
        "eos_token_id",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
    }
)
"""Settings that do what transformers says they do. Those that count tokens to look back at, such as
`repetition_penalty` and `no_repeat_ngram_size`, count those of the answer."""

HARMLESS = frozenset(
    {
        # How the cache is kept: embeddings need one.
        "use_cache",
        "cache_config",
        "max_cache_len",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        # What else `generate` would return: the answers are texts.
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        # Where a prompt of tokens begins.
        "bos_token_id",
        "decoder_start_token_id",
        # Nothing without a setting that is refused, or without an assistant.
        "low_memory",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "speculation_type",
        "transformers_version",
    }
)
"""Settings that change no answer."""

_FROM_HUB = "it runs code from the hub, which CLaRa never does; leave it out"
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "guidance_scale": ((1,), "it needs a second prompt made of text; leave it out"),
    "token_healing": ((False,), "it changes the last token of a text prompt; leave it out"),
    "prefill_chunk_size": (
        (),
        "CLaRa reads a prompt with memory at once; leave it out, and lower batch_size to save "
        "memory",
    ),
    "encoder_repetition_penalty": (
        (1,),
        "it counts the words of a text prompt; leave it out (repetition_penalty counts those of "
        "the answer)",
    ),
    "encoder_no_repeat_ngram_size": (
        (0,),
        "it counts the words of a text prompt; leave it out (no_repeat_ngram_size counts those of "
        "the answer)",
    ),
    "forced_bos_token_id": (
        (),
        "it is for models with an encoder; leave it out, and say in ClaraConfig.prompt how an "
        "answer begins",
    ),
    "is_assistant": ((False,), "it is for a draft model in assisted generation; leave it out"),
    "assistant_early_exit": ((), "it drafts tokens from a text prompt; leave it out"),
    "use_mtp": ((False,), "it drafts tokens from a text prompt; leave it out"),
    "penalty_alpha": ((0,), _FROM_HUB),
    "dola_layers": ((), _FROM_HUB),
    "num_beam_groups": ((1,), f"{_FROM_HUB}, or set num_beams alone"),
    "diversity_penalty": ((0,), f"{_FROM_HUB}, or set num_beams alone"),
    "constraints": (([],), _FROM_HUB),
    "force_words_ids": (([],), _FROM_HUB),
}
"""Settings that cannot work: values that ask for nothing, and what to do."""

_INTEGERS = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "prompt_lookup_num_tokens": 1,
    "max_matching_ngram_size": 1,
    "pad_token_id": 0,
    "forced_eos_token_id": 0,
}
"""Settings that are whole numbers, and the least of each. (`forced_eos_token_id` may be a list.)"""

_NUMBERS = (
    "max_time",
    "temperature",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "length_penalty",
)

_CACHES = (None, "dynamic", "static", "offloaded", "offloaded_static", "quantized")


def generation_settings(
    backbone: PreTrainedModel,
    tokenizer: SafeTokenizer,
    given: GenerationConfig | None,
    max_new_tokens: int | None,
) -> GenerationConfig:
    """Make the settings to generate with: greedy unless `given` says otherwise.

    The stop tokens are those of `given`. Without them they are the beginning of the chat
    template's closing turn and the stop tokens of the backbone and the tokenizer; if a closing turn
    begins with plain text, that text becomes one of `stop_strings`.

    Raises:
        TypeError, ValueError: a setting is refused, or has a value that it cannot have.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        raise TypeError(f"generation_config must be a GenerationConfig, got {given!r}")
    settings = GenerationConfig(do_sample=False) if given is None else copy.deepcopy(given)
    stored = backbone.generation_config
    device = backbone.get_input_embeddings().weight.device
    _check(settings, "generation_config", device)
    _check(stored, "model.backbone.generation_config", device)
    for name, value in vars(settings).items():  # transformers takes Python's own alone
        if is_number(value):
            kind = float if name in _NUMBERS or not is_integer(value) else int
            setattr(settings, name, kind(value))
    for name in ("max_length", "min_length", "stop_strings"):
        if getattr(stored, name, None) is not None:
            raise ValueError(
                f"model.backbone.generation_config.{name} is set; set it to None and pass "
                f"generation_config=GenerationConfig({name}=…)"
            )
    for name in ("output_attentions", "output_hidden_states", "output_scores", "output_logits"):
        setattr(settings, name, False)
    settings.return_dict_in_generate = False
    if max_new_tokens is not None:
        settings.max_new_tokens = as_integer(max_new_tokens, "max_new_tokens", least=1)
    if settings.max_new_tokens is None and settings.max_length is None:
        settings.max_new_tokens = MAX_NEW_TOKENS
    if settings.max_new_tokens is not None:
        settings.max_length = None
    if settings.min_new_tokens is not None:
        settings.min_length = None
    settings.stop_strings = _texts(settings.stop_strings)
    _set_ends(backbone, tokenizer, settings)
    return settings


def settings_for(settings: GenerationConfig, prompt: int) -> GenerationConfig:
    """`settings` for prompts of `prompt` tokens, with limits in new tokens alone.

    `stop_strings` are left out: the caller looks for them.
    """
    made = copy.deepcopy(settings)
    made.max_new_tokens = most_new_tokens(settings, prompt)
    if settings.min_length is not None:
        made.min_new_tokens = max(settings.min_length - prompt, 0)
    made.max_length = made.min_length = made.stop_strings = None
    return made


def most_new_tokens(settings: GenerationConfig, prompt: int) -> int | None:
    """The limit of an answer to a prompt of `prompt` tokens; None is no limit."""
    limit: int | None = settings.max_new_tokens
    return limit if settings.max_length is None else settings.max_length - prompt


def counts_the_prompt(settings: GenerationConfig) -> bool:
    """Whether prompts of unequal length must not be in one batch.

    A limit on the whole length leaves each another number of new tokens. transformers' penalty on
    repetitions takes as many tokens out of the answer as there is padding before the prompt.
    """
    return (
        settings.max_length is not None
        or settings.min_length is not None
        or (settings.repetition_penalty or 1) != 1
    )


def takes_one_question(backbone: PreTrainedModel, settings: GenerationConfig) -> bool:
    """Whether a batch can hold one question only, as where tokens are drafted."""
    modes = (s.get_generation_mode() for s in (settings, backbone.generation_config))
    return GenerationMode.ASSISTED_GENERATION in modes


def answer_reader(
    backbone: PreTrainedModel, tokenizer: SafeTokenizer, settings: GenerationConfig
) -> AnswerReader:
    """What makes answers of tokens that were generated with `settings`."""
    end = answer_end(tokenizer)
    return AnswerReader(
        tokenizer,
        ends=frozenset(settings.eos_token_id or ()),
        left_out=frozenset(default_ends(backbone, tokenizer, end)),
        stops=tuple(settings.stop_strings or ()),
        blank=end.blank,
    )


def default_ends(backbone: PreTrainedModel, tokenizer: SafeTokenizer, end: AnswerEnd) -> list[int]:
    """Tokens that end an answer: stored with the backbone, of the tokenizer, of the template."""
    stored = token_ids(backbone.generation_config.eos_token_id)
    own = (tokenizer.tokenizer.eos_token_id, end.token)
    return list(dict.fromkeys([*stored, *(token for token in own if token is not None)]))


def _set_ends(
    backbone: PreTrainedModel, tokenizer: SafeTokenizer, settings: GenerationConfig
) -> None:
    if settings.eos_token_id is not None:
        settings.eos_token_id = token_ids(settings.eos_token_id)
    else:
        end = answer_end(tokenizer)
        ends = default_ends(backbone, tokenizer, end)
        if not ends and not end.text:
            raise ValueError(
                "no stop token: the chat template, the backbone's generation_config and the "
                "tokenizer define none; pass generation_config=GenerationConfig(eos_token_id=…)"
            )
        settings.eos_token_id = ends or None
        if end.text:
            settings.stop_strings = [*(settings.stop_strings or ()), end.text]
    if settings.pad_token_id is None:
        settings.pad_token_id = next((end for end in settings.eos_token_id or () if end >= 0), 0)


def _check(settings: GenerationConfig, origin: str, device: torch.device) -> None:
    _check_cache(settings, origin, device)
    for name, value in vars(settings).items():
        if value is None or name.startswith("_") or name in HARMLESS:
            continue
        if name == "num_return_sequences":
            if value != 1:
                raise ValueError(
                    f"{origin}.num_return_sequences must be 1, got {value!r}: there is one answer "
                    "to a question"
                )
        elif name in REFUSED:
            neutral, advice = REFUSED[name]
            if value not in neutral:
                raise ValueError(f"{origin}.{name} cannot be used with memory: {advice}")
        elif name not in HONOURED:
            raise ValueError(f"{origin}.{name} is not a setting that CLaRa knows; leave it out")
        elif name in _INTEGERS and not isinstance(value, list):
            as_integer(value, f"{origin}.{name}", least=_INTEGERS[name])
        elif name in _NUMBERS:
            as_number(value, f"{origin}.{name}")
        elif name == "exponential_decay_length_penalty" and not _is_pair(value):
            raise ValueError(
                f"{origin}.{name} must be a pair, the token at which it begins and a factor, got "
                f"{value!r}"
            )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))


def _check_cache(settings: GenerationConfig, origin: str, device: torch.device) -> None:
    kind = settings.cache_implementation
    name = f"{origin}.cache_implementation"
    if kind not in _CACHES:
        known = ", ".join(repr(cache) for cache in _CACHES if cache)
        raise ValueError(f"{name} must be one of {known}, or be left out; got {kind!r}")
    if str(kind).startswith("offloaded") and device.type == "cpu":
        raise ValueError(f"{name}={kind!r} needs a GPU to load the cache from; leave it out")
    if kind == "quantized":
        backend = (getattr(settings, "cache_config", None) or {}).get("backend", "quanto")
        package = {"quanto": "optimum-quanto", "hqq": "hqq"}.get(backend)
        if package is None:
            raise ValueError(
                f"{origin}.cache_config must have 'quanto' or 'hqq' as backend, got {backend!r}"
            )
        try:
            version(package)
        except PackageNotFoundError:
            raise ValueError(
                f"{name}={kind!r} needs the package {package}: pip install {package}, or leave it "
                "out"
            ) from None


def token_ids(given: Any) -> list[int]:
    """Token ids as a list; 0 is one, None is none."""
    if given is None:
        return []
    if isinstance(given, torch.Tensor):
        given = given.tolist()
    each = given if isinstance(given, list | tuple) else [given]
    return [as_integer(token, "generation_config.eos_token_id") for token in each]


def _texts(given: str | Iterable[str] | None) -> list[str] | None:
    if given is None:
        return None
    texts: list[Any] = [given]
    if isinstance(given, Iterable) and not isinstance(given, str):
        texts = list(given)
    if any(not isinstance(text, str) or not text for text in texts):
        raise ValueError(
            "generation_config.stop_strings must be a text or a list of texts, none of them "
            f"empty; got {given!r}"
        )
    return texts or None
