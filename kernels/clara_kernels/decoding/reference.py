"""A step of a decoder in PyTorch: what the compiled one has to compute."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from .weights import DecoderCache, DecoderWeights, LayerWeights, LinearWeights


def step(
    weights: DecoderWeights,
    cache: DecoderCache,
    embeddings: Tensor,
    cosines: Tensor,
    sines: Tensor,
) -> Tensor:
    """As `Decoder.step`, in the cache's dtype; `cache.lengths` are left as they are."""
    states = embeddings.to(cache.keys.dtype)
    for index, layer in enumerate(weights.layers):
        normalised = _normalised(states, layer.attention_norm, weights.epsilon)
        attended = _attended(weights, layer, index, cache, normalised, cosines, sines)
        states = states + _linear(layer.output, attended)
        normalised = _normalised(states, layer.network_norm, weights.epsilon)
        gated = silu(_linear(layer.gate, normalised)) * _linear(layer.up, normalised)
        states = states + _linear(layer.down, gated)
    return _linear(weights.head, _normalised(states, weights.final_norm, weights.epsilon))


def _linear(layer: LinearWeights, x: Tensor) -> Tensor:
    weight = layer.weight.to(x.dtype)
    if layer.row_scales is not None:
        weight = weight * layer.row_scales.to(x.dtype)[:, None]
    out = x @ weight.T
    if layer.down is not None and layer.up is not None:
        out = out + layer.scaling * (x @ layer.down.to(x.dtype).T) @ layer.up.to(x.dtype).T
    return out if layer.bias is None else out + layer.bias.to(x.dtype)


def _normalised(x: Tensor, norm: Tensor, epsilon: float) -> Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return x * (mean + epsilon).rsqrt() * norm.to(x.dtype)


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Heads `[B, heads, head_dim]`, their halves rotated against each other."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return heads * cosines[:, None].to(heads.dtype) + turned * sines[:, None].to(heads.dtype)


def _attended(
    weights: DecoderWeights,
    layer: LayerWeights,
    index: int,
    cache: DecoderCache,
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
) -> Tensor:
    def heads(linear: LinearWeights, norm: Tensor | None) -> Tensor:
        made = _linear(linear, x).unflatten(-1, (-1, weights.head_dim))
        return made if norm is None else _normalised(made, norm, weights.epsilon)

    queries = _rotated(heads(layer.query, layer.query_norm), cosines, sines)
    keys = _rotated(heads(layer.key, layer.key_norm), cosines, sines)
    values = heads(layer.value, None)
    rows = []
    for sequence, place in enumerate(cache.lengths.tolist()):
        cache.keys[index, sequence, :, place] = keys[sequence]
        cache.values[index, sequence, :, :, place] = values[sequence]
        group = queries[sequence].unflatten(0, (weights.key_heads, -1))  # [key heads, group, d]
        scores = group @ cache.keys[index, sequence, :, : place + 1].transpose(-1, -2)
        shares = (scores * weights.score_scaling).softmax(-1)
        read = shares @ cache.values[index, sequence, :, :, : place + 1].transpose(-1, -2)
        rows.append(read.flatten())
    return torch.stack(rows)
