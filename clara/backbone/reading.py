"""Reading prompts into a cache by the layers of backbones that the decoder knows.

As transformers' own forward does it, but for what it costs: norms, activations and rotations are
made in one pass each, the mask is made once, and the last layer computes the last position alone,
as no other one is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from clara.backbone.output_path import body_of
from clara.backbone.projection import project
from clara_kernels.elementwise import (
    computes_here,
    gated_activation,
    rms_norm,
    rms_norm_of_sum,
    rotate,
)

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


def last_states(
    backbone: PreTrainedModel, embeddings: Tensor, mask: Tensor, cache: DynamicCache
) -> Tensor:
    """Final (normalised) states `[B, H]` of the last position of each prompt.

    Args:
        backbone: one whose weights `decoder_weights` finds: it knows that the layers are Llama's.
        embeddings: `[B, L, H]` of what is not in the cache.
        mask: `[B, P + L]`, 0 where a prompt is padded, on the left; `P` positions are in the cache.
        cache: transformers' plain one; the keys and values of the `L` positions are added to it.
    """
    length = embeddings.shape[1]
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
    body: Any = body_of(backbone)
    if not computes_here(embeddings):
        made = body(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        states: Tensor = made.last_hidden_state[:, -1]
        return states
    turned = body.rotary_emb(embeddings, positions)
    # Made once: from a mask of booleans each layer would make it anew.
    unseen = ~_seen(mask, length)
    added = embeddings.new_zeros(unseen.shape).masked_fill_(unseen, -torch.inf)
    residual, layers = embeddings, list(body.layers)
    for index, layer in enumerate(layers):
        last = index + 1 == len(layers)
        residual = _layer(layer, residual, turned, added, cache, index, last_only=last)
    return rms_norm(residual[:, -1], body.norm.weight, body.norm.variance_epsilon)


def _seen(mask: Tensor, length: int) -> Tensor:
    """Boolean `[B or 1, 1, L, P + L]`: the keys that each new position attends to."""
    total = mask.shape[1]
    places = torch.arange(total, device=mask.device)
    rows = places[total - length :, None]
    seen = (places <= rows)[None, None]
    real = mask.bool()
    if real.all():
        return seen
    # Padding attends to itself: the softmax of nothing would be NaN, in keys of the next layer too.
    return (seen & real[:, None, None]) | (places == rows)


def _layer(
    layer: Any,
    hidden: Tensor,
    turned: tuple[Tensor, Tensor],
    added: Tensor,
    cache: DynamicCache,
    index: int,
    *,
    last_only: bool,
) -> Tensor:
    """Hidden states `[B, L, H]` after a layer, or `[B, 1, H]` of the last position.

    Args:
        turned: cosines and sines of the positions.
        added: to the scores of attention, `[B or 1, 1, L, P + L]`.
    """
    attention, network = layer.self_attn, layer.mlp
    before, between = layer.input_layernorm, layer.post_attention_layernorm
    normed = rms_norm(hidden, before.weight, before.variance_epsilon)
    asking, asking_turned = normed, turned
    if last_only:
        hidden, asking, added = hidden[:, -1:], normed[:, -1:], added[:, :, -1:]
        asking_turned = turned[0][:, -1:], turned[1][:, -1:]
    query = _heads(attention, project(attention.q_proj, asking), "q_norm", asking_turned)
    key = _heads(attention, project(attention.k_proj, normed), "k_norm", turned)
    value = (
        project(attention.v_proj, normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    )
    keys, values = cache.update(key, value, index)
    attended = scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=added,
        scale=attention.scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    delta = project(attention.o_proj, attended.transpose(1, 2).flatten(-2))
    hidden, normed = rms_norm_of_sum(hidden, delta, between.weight, between.variance_epsilon)
    made = gated_activation(
        project(network.gate_proj, normed), project(network.up_proj, normed), "silu"
    )
    result: Tensor = hidden + project(network.down_proj, made)
    return result


def _heads(attention: Any, x: Tensor, norm: str, turned: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys `[B, heads, L, head_dim]`, normed where the family does, and rotated."""
    x = x.unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, norm):
        own = getattr(attention, norm)
        x = rms_norm(x, own.weight, own.variance_epsilon)
    return rotate(x, *turned, dtype=x.dtype).transpose(1, 2)
