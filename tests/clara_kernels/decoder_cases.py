"""Random decoders of odd sizes."""

import torch

from clara_kernels.decoding import DecoderCache, DecoderWeights, LayerWeights, LinearWeights

HIDDEN, HEADS, KEY_HEADS, HEAD_DIM, BETWEEN, LAYERS, WORDS = 50, 6, 2, 10, 77, 3, 131


def decoder_weights(dtype=torch.float32, *, rank=0, bias=False, head_norms=False, seed=0):
    """Weights in `dtype`; int8 has a scale for each row."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def linear(outputs, inputs):
        weight, scales = normal(outputs, inputs) / inputs**0.5, None
        if dtype == torch.int8:
            scales = weight.abs().amax(1) / 127
            weight = (weight / scales[:, None]).round()
        return LinearWeights(
            weight.to(dtype),
            normal(outputs) if bias else None,
            scales,
            normal(rank, inputs) / inputs**0.5 if rank else None,
            normal(outputs, rank) if rank else None,
            0.5,
        )

    def norm(width):
        return 1 + normal(width) / 10

    layers = [
        LayerWeights(
            norm(HIDDEN),
            linear(HEADS * HEAD_DIM, HIDDEN),
            linear(KEY_HEADS * HEAD_DIM, HIDDEN),
            linear(KEY_HEADS * HEAD_DIM, HIDDEN),
            linear(HIDDEN, HEADS * HEAD_DIM),
            norm(HIDDEN),
            linear(BETWEEN, HIDDEN),
            linear(BETWEEN, HIDDEN),
            linear(HIDDEN, BETWEEN),
            norm(HEAD_DIM) if head_norms else None,
            norm(HEAD_DIM) if head_norms else None,
        )
        for _ in range(LAYERS)
    ]
    sizes = HEADS, KEY_HEADS, HEAD_DIM
    return DecoderWeights(layers, norm(HIDDEN), linear(WORDS, HIDDEN), *sizes, 1e-5, 0.3)


def filled_cache(weights, lengths, capacity, dtype=torch.float32, seed=1):
    """A cache of sequences of some lengths. Whatever reads behind them reads NaN."""
    generator = torch.Generator().manual_seed(seed)
    cache = DecoderCache.empty(weights, len(lengths), capacity, dtype)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    for sequence, length in enumerate(lengths):
        for layer in range(len(weights.layers)):
            shape = (2, weights.key_heads, length, weights.head_dim)
            keys, values = torch.randn(*shape, generator=generator)
            cache.fill(layer, sequence, keys, values)
    cache.lengths.copy_(torch.tensor(lengths))
    return cache


def tokens(count, seed):
    """Embeddings, cosines and sines of `count` tokens."""
    generator = torch.Generator().manual_seed(seed)
    widths = HIDDEN, HEAD_DIM, HEAD_DIM
    return [torch.randn(count, width, generator=generator) for width in widths]
