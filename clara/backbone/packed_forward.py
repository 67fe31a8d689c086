"""One forward pass over packed sequences, up to the final states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from clara.backbone.adapters import Adapters
from clara.backbone.fused_layers import FusedLayers
from clara.backbone.memory_rows import last_layer, restricted_to_rows
from clara.backbone.output_path import body_of
from clara.backbone.recomputation import recomputed_within
from clara.backbone.rotary import factors_by_sequence, side, switching_lengths
from clara.text.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def packed_states(
    backbone: PreTrainedModel,
    adapters: Adapters,
    batch: PackedBatch,
    embeddings: Tensor,
    adapter: str | None,
    *,
    memory_only: bool = False,
) -> Tensor:
    """Final (normalised) hidden states `[T, H]` of packed sequences, no output head.

    Args:
        batch: one that `check_positions` accepts.
        embeddings: `[T, H]` of the tokens and memory slots of the batch.
        adapter: the one to compute with; None is the bare backbone.
        memory_only: skip what only rows other than the memory slots at the end of each sequence
            need; those rows are then undefined.
    """
    from clara.backbone.attention import (  # which takes long to import
        check_reached,
        packed_arguments,
    )

    body = body_of(backbone)
    last = last_layer(body) if memory_only else None
    layer, modules = (None, []) if last is None else last
    packed = packed_arguments(batch, backbone, layer)
    fused = FusedLayers.of(backbone, embeddings) if "packed" in packed else FusedLayers([])

    @contextmanager
    def computing() -> Iterator[None]:
        restricted = restricted_to_rows(modules, batch.memory_rows)
        with adapters.active(adapter), restricted, fused.active():
            yield

    factors = factors_by_sequence(backbone, batch.reaches, batch.lengths)
    with computing(), recomputed_within(computing), factors:
        output = body(
            inputs_embeds=embeddings[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **packed,
        )
    check_reached(packed, backbone)
    hidden: Tensor = output.last_hidden_state.squeeze(0)
    return hidden


def positions_of(backbone: PreTrainedModel) -> int | None:
    """The longest sequence that a backbone reads; None where its configuration names no limit."""
    positions: int | None = getattr(backbone.config, "max_position_embeddings", None)
    return positions


def check_positions(backbone: PreTrainedModel, batch: PackedBatch) -> None:
    """Refuse a batch that the backbone cannot read, before anything is computed for it.

    Raises:
        ValueError: a sequence is longer than the backbone's positions, or shares rows with one
            that the backbone computes with other rotary factors.
    """
    positions = positions_of(backbone)
    reaches = batch.reaches
    longest = max(reaches, default=0)
    if positions is not None and longest > positions:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the backbone's {positions} positions; "
            "use fewer documents or a shorter text"
        )
    if not batch.branches:
        return
    bounds = switching_lengths(backbone)
    for branch, reach in zip(batch.branches, reaches[batch.whole :], strict=True):
        trunk = reaches[branch.trunk]
        if side(bounds, trunk) != side(bounds, reach):
            raise ValueError(
                f"prompts of {trunk} and {reach} tokens cannot share their beginning: the "
                "backbone's rotary factors change between these lengths; put them into groups of "
                "their own"
            )
