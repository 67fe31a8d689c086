"""A decoder that reads one token at a time, at the speed of reading its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from ..build import native
from . import reference
from .weights import DecoderCache, DecoderWeights, LayerWeights, LinearWeights, require_shape

_TYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}


class Decoder:
    """A decoder with its output head, for one or a few sequences at a time.

    On a CPU a step is one call of the compiled module. It reads each weight once, in the type that
    it is stored in, and computes in float32. LoRA adapters are applied as they are: nothing is
    merged, and nothing is rounded. Elsewhere, and in float64, PyTorch computes the same.

    Args:
        weights: matrices with adjacent columns are used in place: what is written to them changes
            what is computed. Others, norms and biases are copied, these two to float32.

    Examples:
        >>> import torch
        >>> from clara_kernels.decoding import (
        ...     Decoder, DecoderCache, DecoderWeights, LayerWeights, LinearWeights
        ... )
        >>> square = LinearWeights(torch.eye(4))
        >>> layer = LayerWeights(torch.ones(4), *[square] * 4, torch.ones(4), *[square] * 3)
        >>> weights = DecoderWeights([layer], torch.ones(4), square, 1, 1, 4, 1e-6, 0.5)
        >>> cache = DecoderCache.empty(weights, sequences=2, capacity=8)
        >>> unrotated = torch.ones(2, 4), torch.zeros(2, 4)
        >>> logits = Decoder(weights).step(cache, torch.ones(2, 4), *unrotated)
        >>> logits.shape, cache.lengths.tolist()
        (torch.Size([2, 4]), [1, 1])
    """

    def __init__(self, weights: DecoderWeights) -> None:
        self.weights = weights
        self._kept: list[Tensor] = []  # whose addresses the compiled decoder has
        self._compiled = self._compile() if _compiles(weights) else None

    @torch.no_grad()
    def step(
        self, cache: DecoderCache, embeddings: Tensor, cosines: Tensor, sines: Tensor
    ) -> Tensor:
        """Read one more token of each sequence.

        Args:
            cache: what was read before; the token is added to it.
            embeddings: `[sequences, hidden]`, of the tokens.
            cosines, sines: `[sequences, head_dim]`, of the rotation by each token's position.

        Returns:
            Logits of the next token, `[sequences, vocabulary]`, in the cache's dtype.

        Raises:
            ValueError: the cache is full, or a tensor has another shape than it should.
        """
        cache.require(self.weights)
        on_cpu = cache.keys.device.type == "cpu"
        if self._compiled is None or cache.keys.dtype != torch.float32 or not on_cpu:
            logits = reference.step(self.weights, cache, embeddings, cosines, sines)
        else:
            logits = self._compiled_step(cache, embeddings, cosines, sines)
        cache.lengths += 1
        return logits

    def _compiled_step(
        self, cache: DecoderCache, embeddings: Tensor, cosines: Tensor, sines: Tensor
    ) -> Tensor:
        sequences, head_dim = cache.keys.shape[1], self.weights.head_dim
        require_shape("embeddings", embeddings, sequences, self.weights.hidden)
        require_shape("cosines", cosines, sequences, head_dim)
        require_shape("sines", sines, sequences, head_dim)
        given = [
            each.to(device="cpu", dtype=torch.float32).contiguous()
            for each in (embeddings, cosines, sines)
        ]
        shape = sequences, self.weights.head.outputs
        logits = torch.empty(shape, dtype=torch.float32, device="cpu")
        with record_function("clara::decode_step"):  # PyTorch's profiler sees no C++ of ours
            native.decode_step(
                self._compiled,
                cache.keys.data_ptr(),
                cache.values.data_ptr(),
                sequences,
                cache.capacity,
                *(tensor.data_ptr() for tensor in given),
                cache.lengths.data_ptr(),
                logits.data_ptr(),
                torch.get_num_threads(),
            )
        return logits

    def _compile(self) -> Any:
        weights = self.weights
        return native.Decoder(
            heads=weights.heads,
            key_heads=weights.key_heads,
            head_dim=weights.head_dim,
            epsilon=weights.epsilon,
            score_scaling=weights.score_scaling,
            layers=[self._layer(layer) for layer in weights.layers],
            final_norm=self._floats(weights.final_norm),
            head=self._linear(weights.head),
        )

    def _layer(self, layer: LayerWeights) -> Any:
        norms = layer.attention_norm, layer.network_norm, layer.query_norm, layer.key_norm
        return native.DecoderLayer(
            *(self._floats(norm) for norm in norms),
            [self._linear(linear) for linear in layer.linears],
        )

    def _linear(self, linear: LinearWeights) -> Any:
        return native.Linear(
            self._rows(linear.weight),
            self._floats(linear.row_scales),
            self._floats(linear.bias),
            self._rows(linear.down),
            self._rows(linear.up),
            linear.scaling,
        )

    def _floats(self, values: Tensor | None) -> int:
        """The address of values in float32; 0 of none."""
        if values is None:
            return 0
        kept = values.detach().to(device="cpu", dtype=torch.float32).contiguous()
        self._kept.append(kept)
        return self._kept[-1].data_ptr()

    def _rows(self, matrix: Tensor | None) -> Any:
        if matrix is None:
            return native.Rows(0, "float32", 0, 0, 0)
        matrix = matrix.detach()
        self._kept.append(matrix if matrix.stride(1) == 1 else matrix.contiguous())
        kept = self._kept[-1]
        return native.Rows(kept.data_ptr(), _TYPE_NAMES[kept.dtype], *kept.shape, kept.stride(0))


def _compiles(weights: DecoderWeights) -> bool:
    """Whether the compiled module can compute with these tensors."""
    if native is None:
        return False
    linears = [weights.head, *(each for layer in weights.layers for each in layer.linears)]
    matrices = [m for each in linears for m in (each.weight, each.down, each.up) if m is not None]
    return all(m.device.type == "cpu" and m.dtype in _TYPE_NAMES for m in matrices)
