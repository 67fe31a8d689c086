"""Greedy decoding by the decoder of clara_kernels, with a cache whose memory is taken once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMode
from transformers.generation.streamers import BaseStreamer

from clara.backbone.decoder_layout import decoder_of
from clara.backbone.output_path import body_of, states_to_logits
from clara.model.prompt_prefix import can_continue, empty_cache
from clara_kernels.decoding import Decoder, DecoderCache

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


def decoder_for(backbone: PreTrainedModel, settings: GenerationConfig) -> Decoder | None:
    """The decoder that `decode` needs; None where transformers' `generate` has to do it.

    The rule: greedy, without settings that change the logits or end an answer by the clock, and a
    backbone that `decoder_of` knows. Sampling, beams, assisted generation and given caches are left
    to `generate`.
    """
    given = settings, backbone.generation_config
    if any(each.get_generation_mode() != GenerationMode.GREEDY_SEARCH for each in given):
        return None
    for name, neutral in _NEUTRAL.items():
        for each in given:
            value = getattr(each, name, None)
            if value is not None and value not in neutral:
                return None
    return decoder_of(backbone) if can_continue(backbone, settings) else None


@torch.no_grad()
def decode(
    backbone: PreTrainedModel,
    decoder: Decoder,
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
        decoder: of `decoder_for`.
        settings: with `max_new_tokens`, `min_new_tokens`, `eos_token_id` and `pad_token_id`.
        inputs_embeds, attention_mask, past_key_values: of prompts, as `generate` takes them. The
            first two cover what is in the cache too.
        criteria: is given the ids so far, and says of each row whether it ends there.
        streamer: gets the tokens of each step.
    """
    read = empty_cache(backbone) if past_key_values is None else past_key_values
    rest = slice(read.get_seq_length(), None)
    positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
    states = body_of(backbone)(
        inputs_embeds=inputs_embeds[:, rest],
        attention_mask=attention_mask,
        position_ids=positions[:, rest],
        past_key_values=read,
        use_cache=True,
    ).last_hidden_state
    logits = states_to_logits(backbone, states[:, -1])
    least, most = settings.min_new_tokens or 0, int(settings.max_new_tokens)
    cache = _decoder_cache(decoder, read, attention_mask.bool(), most)
    ends = torch.tensor(settings.eos_token_id or [], dtype=torch.long)
    ids = torch.empty(len(logits), most, dtype=torch.long)
    done = torch.zeros(len(logits), dtype=torch.bool)
    for place in range(most):
        if place < least:
            logits[:, ends] = -torch.inf
        tokens = logits.argmax(-1).masked_fill(done, settings.pad_token_id)
        ids[:, place] = tokens
        if streamer is not None:
            streamer.put(tokens)
        made = ids[:, : place + 1]
        done |= torch.isin(tokens, ends) | criteria(made, None)
        if done.all() or place + 1 == most:
            break
        embeddings = backbone.get_input_embeddings()(tokens)
        cosines, sines = _rotation(backbone, embeddings, cache.lengths)
        logits = decoder.step(cache, embeddings, cosines, sines)
    if streamer is not None:
        streamer.end()
    return made


def _decoder_cache(decoder: Decoder, read: DynamicCache, mask: Tensor, new: int) -> DecoderCache:
    """What the prompts left in transformers' cache, without padding and with room to go on."""
    lengths = mask.sum(1)
    cache = DecoderCache.empty(decoder.weights, len(mask), int(lengths.max()) + new)
    for index, layer in enumerate(read.layers):
        for row, real in enumerate(mask):
            cache.fill(index, row, layer.keys[row, :, real], layer.values[row, :, real])
    cache.lengths.copy_(lengths)
    return cache


def _rotation(
    backbone: PreTrainedModel, embeddings: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, head_dim]` of the tokens' positions `[B]`."""
    rotary: Any = body_of(backbone).rotary_emb
    cosines, sines = rotary(embeddings[:, None].float(), positions[:, None])
    return cosines[:, 0], sines[:, 0]
