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
from clara.backbone.branched_rows import BranchedRows
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
        branches: of the packed sequence, see `clara.text.branches`; None without any. All else
            then describes the documents in front of them.
        unrolled: the branches as documents, their own rows as memory rows; None without any.
        layers_seen: attention layers that the layout has reached in this forward.
    """

    cu_seqlens: Tensor
    memory_rows: Tensor
    n_memory: int | Tensor
    lengths: list[int]
    memory_only_layer: int | None = None
    patterns: Mapping[nn.Module, AttentionPattern] = field(default_factory=dict)
    branches: BranchedRows | None = None
    unrolled: PackedLayout | None = None
    layers_seen: int = 0
    _chunks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        batch: PackedBatch,
        memory_only_layer: int | None = None,
        patterns: Mapping[nn.Module, AttentionPattern] | None = None,
    ) -> PackedLayout:
        branches = BranchedRows.of(batch) if batch.branches else None
        trunks = batch.trunks if batch.branches else batch
        return cls(
            trunks.cu_seqlens,
            trunks.memory_rows,
            trunks.memory_counts,
            trunks.lengths,
            memory_only_layer,
            patterns or {},
            branches,
            None if branches is None else cls._unrolled(branches, batch.ids.device),
        )

    @classmethod
    def _unrolled(cls, branches: BranchedRows, device: torch.device) -> PackedLayout:
        lengths = branches.unrolled
        own = torch.tensor(branches.own, dtype=torch.int32, device=device)
        return cls(_bounds(lengths, device), branches.own_rows.to(device), own, lengths)

    def chunks(self, size: int) -> Tensor:
        """int32 `[C + 1]`, bounds of the documents' chunks of at most `size` rows."""
        if size not in self._chunks:
            parts = [min(size, n - at) for n in self.lengths for at in range(0, n, size)]
            self._chunks[size] = _bounds(parts, self.cu_seqlens.device)
        return self._chunks[size]


def _bounds(lengths: list[int], device: torch.device) -> Tensor:
    """int32, where each part starts and the last one ends."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


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
    """Causal attention of each document to itself, and of branches to what they share.

    Args:
        query: `[heads, T, head_dim]`.
        key, value: `[kv_heads, T, …]`, the key's width that of the query, the value's its own;
            `heads` is a multiple of `kv_heads`.
        memory_only: compute the memory rows; the others are zero. Not with branches.
        pattern: the part of its document that a row attends to.

    Returns:
        `[T, heads, value width]`.
    """
    width, value_width = key.shape[-1], value.shape[-1]
    # Columns of zeros change neither the scores nor the columns before them.
    if width < value_width:
        query, key = (pad(x, (0, value_width - width)) for x in (query, key))
    elif value_width < width:
        value = pad(value, (0, width - value_width))
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    if layout.branches is not None and layout.unrolled is not None:
        first = layout.branches.first
        keys, values = layout.branches.unroll(k), layout.branches.unroll(v)
        trunks = _all_rows(q[:first], k[:first], v[:first], layout, pattern, scale)
        own = _memory_rows(q[first:], keys, values, layout.unrolled, pattern, scale)
        return torch.cat([trunks, own])[..., :value_width]
    if not memory_only:
        return _all_rows(q, k, v, layout, pattern, scale)[..., :value_width]
    rows = _memory_rows(q[layout.memory_rows], k, v, layout, pattern, scale)
    out = rows.new_zeros(q.shape[0], q.shape[1], value_width)
    return out.index_copy(0, layout.memory_rows, rows[..., :value_width])


def _all_rows(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, pattern: AttentionPattern, scale: float
) -> Tensor:
    bounds, n_memory = layout.cu_seqlens, layout.n_memory
    if _is_cut(layout, pattern.chunk):
        # Each chunk is a document of its own. Memory rows may lie in two of them.
        bounds, n_memory = layout.chunks(pattern.chunk), 0  # type: ignore[arg-type]
    window = pattern.window if _is_cut(layout, pattern.window) else None
    return memory_attention(q, k, v, bounds, n_memory, scale=scale, window=window)


def _memory_rows(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, pattern: AttentionPattern, scale: float
) -> Tensor:
    """Attention of memory rows, which are all that `q` holds."""
    if _is_cut(layout, pattern.chunk):
        every = q.new_zeros(k.shape[0], *q.shape[1:]).index_copy(0, layout.memory_rows, q)
        return _all_rows(every, k, v, layout, pattern, scale)[layout.memory_rows]
    window = pattern.window if _is_cut(layout, pattern.window) else None
    return memory_attention(
        q, k, v, layout.cu_seqlens, layout.n_memory, memory_only=True, scale=scale, window=window
    )


def _is_cut(layout: PackedLayout, size: int | None) -> bool:
    """Whether a document is longer than a window or chunk."""
    return size is not None and max(layout.lengths) > size


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
        # Unlike x[0], whose gradient is a copy among zeros.
        query.squeeze(0),
        key.squeeze(0),
        value.squeeze(0),
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
        ValueError: flash attention is asked for branches, or memory rows alone of a batch with
            branches.
    """
    if batch.branches and layer is not None:
        raise ValueError("memory_only must be False for a batch with branches, got True")
    if backbone.config._attn_implementation == CLARA_SDPA:
        layout = PackedLayout.of(batch, layer, attention_patterns(backbone))
        # A mask that already has four dimensions is passed on as it is: nothing is built.
        ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)
        return {"attention_mask": ready, "packed": layout}
    if batch.branches:
        raise ValueError(
            f"attention={backbone.config._attn_implementation!r} cannot compute prompts that share "
            "their beginning; use attention='sdpa'"
        )
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
