"""The weights of a decoder as Llama has it, and the keys and values of what it has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LINE = 16  # float32 values in a cache line


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer `W x + bias + scaling · B (A x)`.

    Attributes:
        weight: W `[outputs, inputs]`; int8 with `row_scales`, else a floating-point type.
        bias: `[outputs]`.
        row_scales: `[outputs]`, what each row of an int8 weight is to be multiplied by.
        down, up: A `[r, inputs]` and B `[outputs, r]` of a LoRA adapter, or None.
        scaling: of the adapter.

    Raises:
        ValueError: tensors do not belong together.
    """

    weight: Tensor
    bias: Tensor | None = None
    row_scales: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 0.0

    def __post_init__(self) -> None:
        if (self.weight.dtype == torch.int8) != (self.row_scales is not None):
            raise ValueError("row_scales belong to an int8 weight, and only to one")
        if (self.down is None) != (self.up is None):
            raise ValueError("down and up belong together: both of an adapter, or neither")
        require_shape("bias", self.bias, self.outputs)
        require_shape("row_scales", self.row_scales, self.outputs)

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class LayerWeights:
    """A layer: normalised attention, then a normalised and gated SiLU network.

    Attributes:
        attention_norm, network_norm: `[hidden]`, of the RMS norms before the two.
        query, key, value, output: of attention.
        gate, up, down: of the network, `down(silu(gate(x)) * up(x))`.
        query_norm, key_norm: `[head_dim]`, of an RMS norm of each head, or None.
    """

    attention_norm: Tensor
    query: LinearWeights
    key: LinearWeights
    value: LinearWeights
    output: LinearWeights
    network_norm: Tensor
    gate: LinearWeights
    up: LinearWeights
    down: LinearWeights
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None

    @property
    def linears(self) -> tuple[LinearWeights, ...]:
        """Query, key, value, output, gate, up, down."""
        return self.query, self.key, self.value, self.output, self.gate, self.up, self.down


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder with its output head.

    Attributes:
        layers: from the first.
        final_norm: `[hidden]`.
        head: `[vocabulary, hidden]`.
        heads, key_heads: of attention; `heads / key_heads` of them share keys and values.
        head_dim: values of a head, an even number.
        epsilon: of the norms.
        score_scaling: what products of queries and keys are multiplied by.

    Raises:
        ValueError: a norm has another shape.
    """

    layers: Sequence[LayerWeights]
    final_norm: Tensor
    head: LinearWeights
    heads: int
    key_heads: int
    head_dim: int
    epsilon: float
    score_scaling: float

    def __post_init__(self) -> None:
        require_shape("final_norm", self.final_norm, self.hidden)
        for layer in self.layers:
            require_shape("attention_norm", layer.attention_norm, self.hidden)
            require_shape("network_norm", layer.network_norm, self.hidden)
            require_shape("query_norm", layer.query_norm, self.head_dim)
            require_shape("key_norm", layer.key_norm, self.head_dim)

    @property
    def hidden(self) -> int:
        return self.head.weight.shape[1]


@dataclass
class DecoderCache:
    """Keys and values of the tokens read so far, of sequences of unequal length.

    A step writes into it and moves nothing.

    Attributes:
        keys: `[layers, sequences, key_heads, capacity, head_dim]`, rotated.
        values: `[layers, sequences, key_heads, head_dim, capacity]`.
        lengths: int64 `[sequences]` on the CPU, tokens of each sequence.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = torch.zeros(self.keys.shape[1], dtype=torch.int64, device="cpu")

    @classmethod
    def empty(
        cls,
        weights: DecoderWeights,
        sequences: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
    ) -> DecoderCache:
        """Room for at least `capacity` tokens of each sequence, on the device of the weights."""
        # An odd number of cache lines: rows a power of two apart would crowd each other out.
        capacity = (capacity + _LINE - 1) // _LINE // 2 * 2 * _LINE + _LINE
        device = weights.final_norm.device
        shape = (len(weights.layers), sequences, weights.key_heads)
        keys = torch.empty(*shape, capacity, weights.head_dim, dtype=dtype, device=device)
        values = torch.empty(*shape, weights.head_dim, capacity, dtype=dtype, device=device)
        return cls(keys, values)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def full(self) -> bool:
        """Whether there is no room for another token of the longest sequence."""
        return int(self.lengths.max()) >= self.capacity

    def grown(self, weights: DecoderWeights, capacity: int) -> DecoderCache:
        """The same with more room."""
        made = DecoderCache.empty(weights, self.keys.shape[1], capacity, self.keys.dtype)
        made.keys[:, :, :, : self.capacity] = self.keys
        made.values[..., : self.capacity] = self.values
        made.lengths.copy_(self.lengths)
        return made

    def fill(self, layer: int, sequence: int, keys: Tensor, values: Tensor) -> None:
        """Write what another implementation has read, from the first token on.

        The caller sets `lengths` when all layers are written.

        Args:
            keys, values: `[key_heads, tokens, head_dim]`.
        """
        tokens = keys.shape[1]
        self.keys[layer, sequence, :, :tokens] = keys
        self.values[layer, sequence, :, :, :tokens] = values.transpose(-1, -2)

    def require(self, weights: DecoderWeights) -> None:
        """Refuse a cache that a step of a decoder cannot write to.

        Raises:
            ValueError: it is full, or of other shapes than the decoder's.
        """
        layers, sequences, capacity = len(weights.layers), self.keys.shape[1], self.capacity
        shape = layers, sequences, weights.key_heads, capacity, weights.head_dim
        require_shape("keys", self.keys, *shape)
        require_shape("values", self.values, *shape[:3], shape[4], shape[3])
        require_shape("lengths", self.lengths, sequences)
        if self.lengths.dtype != torch.int64 or self.lengths.device.type != "cpu":
            raise ValueError(
                f"lengths must be int64 on the CPU, got {self.lengths.dtype} on "
                f"{self.lengths.device}"
            )
        if self.values.dtype != self.keys.dtype or self.values.device != self.keys.device:
            raise ValueError("keys and values must have one dtype and one device")
        if not self.keys.is_contiguous() or not self.values.is_contiguous():
            raise ValueError("keys and values must be contiguous")
        if not self.lengths.is_contiguous():
            raise ValueError("lengths must be contiguous")
        if self.full:
            sequence = int(self.lengths.argmax())
            raise ValueError(
                f"the cache holds {capacity} tokens, and sequence {sequence} has as many already"
            )


def require_shape(name: str, tensor: Tensor | None, *shape: int) -> None:
    """Refuse a tensor of another shape; None will do.

    Raises:
        ValueError: names the tensor and both shapes.
    """
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
