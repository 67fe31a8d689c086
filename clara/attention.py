"""Packed attention inside any transformers model that supports `AttentionInterface`.

A model loaded with `CLARA_SDPA` computes transformers' own `sdpa` attention, except in a forward
that passes `packed=PackedLayout(...)`: there each document attends to itself only. The choice
travels with the call, so generation and compression share one model without switching it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from clara.packing import PackedBatch

CLARA_SDPA = "clara_sdpa"


@dataclass
class PackedLayout:
    """Where documents lie in a packed sequence.

    Attributes:
        lengths: of the documents, in order.
        n_memory: memory rows at the end of each.
        memory_only_layer: index of a layer that needs to compute memory rows only, or None.
        layers_seen: attention layers that the layout has reached in this forward.
    """

    lengths: list[int]
    n_memory: int
    memory_only_layer: int | None = None
    layers_seen: int = 0

    @classmethod
    def of(cls, batch: PackedBatch, memory_only_layer: int | None = None) -> PackedLayout:
        return cls(batch.lengths, batch.n_memory, memory_only_layer)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Neighbouring documents of equal length: start row, number, length."""
        start = 0
        for length, group in groupby(self.lengths):
            count = sum(1 for _ in group)
            yield start, count, length
            start += count * length


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    *,
    scale: float,
    memory_only: bool,
) -> Tensor:
    """Causal attention of each document to itself.

    Args:
        query: `[heads, T, head_dim]`.
        key, value: `[kv_heads, T, …]`, the key's width that of the query, the value's its own;
            `heads` is a multiple of `kv_heads`.
        memory_only: compute the memory rows; the others are zero.

    Returns:
        `[T, heads, value width]`.
    """
    heads, width = query.shape[0], value.shape[-1]
    grouped = heads != key.shape[0]
    outputs = []
    for start, count, length in layout.runs():
        rows = slice(start, start + count * length)
        q, k, v = (
            x[:, rows].unflatten(1, (count, length)).transpose(0, 1) for x in (query, key, value)
        )
        if memory_only:
            q = q[:, :, -layout.n_memory :]
            mask = torch.ones(layout.n_memory, length, dtype=torch.bool, device=query.device)
            mask = mask.tril(length - layout.n_memory)
            out = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
            out = nn.functional.pad(out, (0, 0, length - layout.n_memory, 0))
        else:
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
        outputs.append(out.transpose(1, 2).reshape(count * length, heads, width))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _clara_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if packed is None:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    packed.layers_seen += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = packed.memory_only_layer
    memory_only = layer is not None and layer == getattr(module, "layer_idx", None)
    out = packed_attention(query[0], key[0], value[0], packed, scale=scale, memory_only=memory_only)
    return out[None], None


AttentionInterface.register(CLARA_SDPA, _clara_sdpa)
AttentionMaskInterface.register(CLARA_SDPA, sdpa_mask)


def packed_arguments(batch: PackedBatch, implementation: str, layer: int | None) -> dict[str, Any]:
    """Keyword arguments that make a model's forward treat its input as packed.

    Args:
        implementation: attention the model was loaded with.
        layer: see `PackedLayout.memory_only_layer`.
    """
    if implementation == CLARA_SDPA:
        # A mask that already has four dimensions is passed on as it is: nothing is built.
        ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)
        return {"attention_mask": ready, "packed": PackedLayout.of(batch, layer)}
    bounds = batch.cu_seqlens
    longest = max(batch.lengths)
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def check_reached(arguments: dict[str, Any], backbone: PreTrainedModel) -> None:
    """Refuse the result of a forward in which a layer's attention did not see the documents.

    Raises:
        ValueError: a layer of the backbone drops the arguments it is given for its attention, so
            that documents attended to each other.
    """
    layout = arguments.get("packed")
    if layout is not None and layout.layers_seen < backbone.config.num_hidden_layers:
        raise ValueError(
            f"backbone {type(backbone).__name__} cannot compress packed documents: its layers do "
            "not hand on the arguments of attention"
        )
