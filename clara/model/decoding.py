"""Greedy decoding by the decoder of clara_kernels, with keys and values that stay in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMode
from transformers.generation.streamers import BaseStreamer

from clara.backbone.decoder_layout import Undecodable, decoder_weights
from clara.backbone.generation_settings import token_ids
from clara.backbone.output_path import body_of, states_to_logits
from clara.backbone.reading import last_states
from clara.model.prompt_prefix import can_continue, empty_cache
from clara_kernels.decoding import Decoder, DecoderCache, DecoderWeights

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "min_length": (0,),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "watermarking_config": (),
    "max_time": (),
}
"""Settings that change greedy answers or their end, and the values, beside None, that do not."""

_ROOM = 64
"""Tokens that a cache has room for beyond the prompt; it doubles when they are used up."""


def weights_for(backbone: PreTrainedModel, settings: GenerationConfig) -> DecoderWeights:
    """The weights that `decode` needs.

    The rule: greedy decoding, without settings that change the logits or end an answer by the
    clock, on a backbone that `decoder_weights` knows. transformers' `generate` does everything
    else: sampling, beams, assisted generation, caches that were asked for.

    Args:
        settings: see `merged_settings`.

    Raises:
        Undecodable: `generate` has to answer; the message says why.
    """
    if settings.get_generation_mode() != GenerationMode.GREEDY_SEARCH:
        raise Undecodable("decoding is not greedy")
    for name, neutral in _NEUTRAL.items():
        value = getattr(settings, name, None)
        if value is not None and value not in neutral:
            raise Undecodable(f"{name} is set")
    if not can_continue(backbone, settings):
        raise Undecodable("its cache has windows, or rotates by length, or is not the usual one")
    return decoder_weights(backbone)


def merged_settings(backbone: PreTrainedModel, settings: GenerationConfig) -> GenerationConfig:
    """`settings`, and what they leave open as the backbone's own say: as `generate` does it."""
    made = copy.deepcopy(settings)
    for name, value in vars(backbone.generation_config).items():
        if value is not None and not name.startswith("_") and getattr(made, name, None) is None:
            setattr(made, name, value)
    return made


@torch.no_grad()
def decode(
    backbone: PreTrainedModel,
    weights: DecoderWeights,
    settings: GenerationConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    past_key_values: DynamicCache | None = None,
    *,
    criteria: Callable[[Tensor, Any], Tensor],
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Token ids `[B, new tokens]` of greedy answers, as `backbone.generate` gives them.

    Args:
        weights: of `weights_for`.
        settings: see `merged_settings`; with `max_new_tokens`, `min_new_tokens`, `eos_token_id` and
            `pad_token_id`.
        inputs_embeds, attention_mask, past_key_values: of prompts, as `generate` takes them. The
            first two cover what is in the cache too.
        criteria: is given the ids so far, and says of each row whether it ends there.
        streamer: gets the tokens of each step.
    """
    read = empty_cache(backbone) if past_key_values is None else past_key_values
    rest = inputs_embeds[:, read.get_seq_length() :]
    states = last_states(backbone, rest, attention_mask, read)
    logits = states_to_logits(backbone, states)
    least, most = settings.min_new_tokens or 0, int(settings.max_new_tokens)
    ends = torch.tensor(token_ids(settings.eos_token_id), dtype=torch.long, device="cpu")
    known = ends[(ends >= 0) & (ends < logits.shape[1])]
    ids = torch.empty(len(logits), most, dtype=torch.long, device="cpu")
    done = torch.zeros(len(logits), dtype=torch.bool, device="cpu")
    continued = None
    for place in range(most):
        if place < least:
            logits[:, known] = -torch.inf
        tokens = logits.argmax(-1).masked_fill(done, settings.pad_token_id)
        ids[:, place] = tokens
        if streamer is not None:
            streamer.put(tokens)
        made = ids[:, : place + 1]
        done |= torch.isin(tokens, ends) | criteria(made, None)
        if done.all() or place + 1 == most:
            break
        if continued is None:  # made once the first token is out
            continued = _Continued(backbone, weights, read, attention_mask.bool())
        logits = continued.logits(tokens)
    if streamer is not None:
        streamer.end()
    return made


class _Continued:
    """A decoder that goes on where transformers read the prompts."""

    def __init__(
        self, backbone: PreTrainedModel, weights: DecoderWeights, read: DynamicCache, mask: Tensor
    ) -> None:
        self._backbone, self._weights = backbone, weights
        self._rotary: Any = body_of(backbone).rotary_emb
        self._decoder = Decoder(weights)
        self._cache = _decoder_cache(weights, read, mask)

    def logits(self, tokens: Tensor) -> Tensor:
        """The logits of what follows the tokens `[B]`."""
        if self._cache.full:
            self._cache = self._cache.grown(self._weights, 2 * self._cache.capacity)
        embeddings = self._backbone.get_input_embeddings()(tokens)
        positions = self._cache.lengths[:, None]
        cosines, sines = self._rotary(embeddings[:, None].float(), positions)
        return self._decoder.step(self._cache, embeddings, cosines[:, 0], sines[:, 0])


def _decoder_cache(weights: DecoderWeights, read: DynamicCache, mask: Tensor) -> DecoderCache:
    """What the prompts left in transformers' cache, without padding and with room to go on."""
    lengths = mask.sum(1)
    cache = DecoderCache.empty(weights, len(mask), int(lengths.max()) + _ROOM)
    padded = not bool(mask.all())
    for index, layer in enumerate(read.layers):
        for row, real in enumerate(mask):
            keys, values = layer.keys[row], layer.values[row]
            if padded:
                keys, values = keys[:, real], values[:, real]
            cache.fill(index, row, keys, values)
    cache.lengths.copy_(lengths)
    return cache
