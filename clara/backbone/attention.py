"""Packed attention inside any transformers model that supports `AttentionInterface`.

A model loaded with `CLARA_SDPA` computes transformers' own `sdpa` attention, except in a forward
that passes `packed=PackedLayout(...)`: there each document attends to itself only. The choice
travels with the call, so generation and compression share one model without switching it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from clara.backbone.attention_patterns import (
    CLARA_SDPA,
    FULL,
    AttentionPattern,
    Recording,
    attention_patterns,
    recording_mask,
)
from clara.text.packing import PackedBatch
from clara_kernels import memory_attention


@dataclass
class PackedLayout:
    """Where documents lie in a packed sequence.

    Attributes:
        cu_seqlens: int32 `[N + 1]`, bounds of the documents.
        memory_rows: int64 `[M]`, where their memory rows lie.
        n_memory: memory rows at the end of each: one number for all, or int32 `[N]`.
        lengths: length of each document.
        memory_only_layer: index of a layer that needs to compute memory rows only, or None.
        patterns: what each attention module attends to; all of a document where it says nothing.
        layers_seen: attention layers that the layout has reached in this forward.
    """

    cu_seqlens: Tensor
    memory_rows: Tensor
    n_memory: int | Tensor
    lengths: list[int]
    memory_only_layer: int | None = None
    patterns: Mapping[nn.Module, AttentionPattern] = field(default_factory=dict)
    layers_seen: int = 0
    _chunks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        batch: PackedBatch,
        memory_only_layer: int | None = None,
        patterns: Mapping[nn.Module, AttentionPattern] | None = None,
    ) -> PackedLayout:
        return cls(
            batch.cu_seqlens,
            batch.memory_rows,
            batch.memory_counts,
            batch.lengths,
            memory_only_layer,
            patterns or {},
        )

    def chunks(self, size: int) -> Tensor:
        """int32 `[C + 1]`, bounds of the documents' chunks of at most `size` rows."""
        if size not in self._chunks:
            parts = [min(size, n - at) for n in self.lengths for at in range(0, n, size)]
            bounds = torch.tensor([0, *parts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            self._chunks[size] = bounds.to(self.cu_seqlens.device)
        return self._chunks[size]


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    *,
    scale: float,
    memory_only: bool,
    pattern: AttentionPattern = FULL,
) -> Tensor:
    """Causal attention of each document to itself.

    Args:
        query: `[heads, T, head_dim]`.
        key, value: `[kv_heads, T, …]`, the key's width that of the query, the value's its own;
            `heads` is a multiple of `kv_heads`.
        memory_only: compute the memory rows; the others are zero.
        pattern: the part of its document that a row attends to.

    Returns:
        `[T, heads, value width]`.
    """
    width, value_width = key.shape[-1], value.shape[-1]
    # Columns of zeros change neither the scores nor the columns before them.
    q, k = (pad(x, (0, max(value_width - width, 0))) for x in (query, key))
    v = pad(value, (0, max(width - value_width, 0)))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    chunked = pattern.chunk is not None and max(layout.lengths) > pattern.chunk
    options: dict[str, Any] = {"scale": scale}
    if pattern.window is not None and max(layout.lengths) > pattern.window:
        options["window"] = pattern.window
    if chunked:
        # Each chunk is a document of its own. Memory rows may lie in two of them.
        bounds = layout.chunks(pattern.chunk)  # type: ignore[arg-type]
        rows = memory_attention(q, k, v, bounds, 0, **options)[..., :value_width]
        if not memory_only:
            return rows
        rows = rows[layout.memory_rows]
    elif not memory_only:
        every = memory_attention(q, k, v, layout.cu_seqlens, layout.n_memory, **options)
        return every[..., :value_width]
    else:
        queries, options = q[layout.memory_rows], {**options, "memory_only": True}
        rows = memory_attention(queries, k, v, layout.cu_seqlens, layout.n_memory, **options)
    out = rows.new_zeros(q.shape[0], q.shape[1], value_width)
    return out.index_copy(0, layout.memory_rows, rows[..., :value_width])


def _clara_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packed: PackedLayout | Recording | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if isinstance(packed, Recording):
        packed.attention(module, attention_mask, kwargs)
        packed = attention_mask = None
    if packed is None:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    packed.layers_seen += 1
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embedding makes queries and keys float32 again, which values are not.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = packed.memory_only_layer
    memory_only = layer is not None and layer == getattr(module, "layer_idx", None)
    out = packed_attention(
        query[0],
        key[0],
        value[0],
        packed,
        scale=scale,
        memory_only=memory_only,
        pattern=packed.patterns.get(module, FULL),
    )
    return out[None], None


AttentionInterface.register(CLARA_SDPA, _clara_sdpa)
AttentionMaskInterface.register(CLARA_SDPA, recording_mask)


def packed_arguments(
    batch: PackedBatch, backbone: PreTrainedModel, layer: int | None
) -> dict[str, Any]:
    """Keyword arguments that make a model's forward treat its input as packed.

    Args:
        backbone: the model; what it is given depends on the attention it was loaded with.
        layer: see `PackedLayout.memory_only_layer`.

    Raises:
        UnsupportedAttentionError: its attention cannot be computed for packed sequences.
    """
    if backbone.config._attn_implementation == CLARA_SDPA:
        layout = PackedLayout.of(batch, layer, attention_patterns(backbone))
        # A mask that already has four dimensions is passed on as it is: nothing is built.
        ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)
        return {"attention_mask": ready, "packed": layout}
    # Flash attention's kernels know windows and caps: transformers passes on those of each layer.
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
