"""Rotary embeddings whose frequencies depend on the longest position of a forward.

"longrope" (Phi-3 and Phi-4-mini) has two sets of factors: a short one, and a long one that takes
over when a forward reaches beyond the length the model was first trained for. Transformers chooses
for a whole forward. A sequence computed beside others must get the factors it has alone.

"dynamic" changes its frequencies beyond `max_position_embeddings`, which no sequence may exceed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGROPE = "longrope"


def rope_settings(backbone: PreTrainedModel) -> list[dict[str, Any]]:
    """Settings of rotary embedding; transformers has one for all layers or one for each type."""
    settings = getattr(backbone.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [settings, *(value for value in settings.values() if isinstance(value, dict))]


def switching_lengths(backbone: PreTrainedModel) -> tuple[int, ...]:
    """Lengths beyond which a sequence is computed with other factors, ascending; mostly none."""
    found = {
        int(one["original_max_position_embeddings"])
        for one in rope_settings(backbone)
        if one.get("rope_type") == LONGROPE
    }
    return tuple(sorted(found))


def side(bounds: Sequence[int], length: int) -> tuple[bool, ...]:
    """Which factors a sequence has: whether it is longer than each switching length."""
    return tuple(length > bound for bound in bounds)


@contextmanager
def factors_by_sequence(
    backbone: PreTrainedModel, lengths: Sequence[int], rows: Sequence[int]
) -> Iterator[None]:
    """Within the block, packed sequences get the factors that each has alone.

    Args:
        lengths: positions of each sequence.
        rows: of each in the packed sequence; fewer for a branch, see `clara.text.branches`.
    """
    bounds = switching_lengths(backbone)
    shortest, longest = min(lengths), max(lengths)
    if not any(shortest <= bound < longest for bound in bounds):
        yield
        return

    def choose(
        module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> Any:
        # Called with (x, position_ids, layer_type=None); the longest sequence chose `output`.
        given = dict(zip(("x", "position_ids", "layer_type"), arguments, strict=False)) | options
        bound = _bound(module, given.get("layer_type"))
        if bound is None or not shortest <= bound < longest:
            return output
        positions = given["position_ids"]
        counts = torch.tensor(rows, device=positions.device)
        reaches = torch.tensor(lengths, device=positions.device)
        beyond = (reaches > bound).repeat_interleave(counts)
        # Without the long sequences' positions, this is what a forward of the short ones has.
        given["position_ids"] = positions.masked_fill(beyond, 0)
        others = module.forward(**given)
        if isinstance(output, Tensor):
            return torch.where(beyond[:, None], output, others)
        pairs = zip(output, others, strict=True)
        return tuple(torch.where(beyond[:, None], one, other) for one, other in pairs)

    handles = [
        module.register_forward_hook(choose, with_kwargs=True)
        for module in backbone.modules()
        if LONGROPE in _kinds(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batching_key(bounds: Sequence[int], length: int, new_tokens: int | None) -> tuple[int, ...]:
    """Prompts with the same key may be answered in one batch.

    Those that stay on one side of every switching length go together. One that may cross it in the
    middle of its answer goes with prompts of its own length, which cross it at the same step.

    Args:
        bounds: see `switching_lengths`.
        length: of the prompt.
        new_tokens: the most that are generated; None is no limit.
    """
    key = []
    for bound in bounds:
        # The last new token is not read again.
        ends_below = new_tokens is not None and length + new_tokens - 1 <= bound
        key.append(-1 if length > bound else 0 if ends_below else length)
    return tuple(key)


@contextmanager
def recomputed_at_switch(backbone: PreTrainedModel) -> Iterator[None]:
    """Within the block, `generate` computes all keys anew when an answer crosses a length.

    The keys in its cache were rotated with the short factors, and positions beyond need the long
    ones. Transformers does this for Phi-3, but only for prompts given as tokens.

    The prompts of a batch that crosses must be of one length, see `batching_key`.
    """
    bounds = switching_lengths(backbone)
    if not bounds:
        yield
        return
    prepare = backbone.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def with_new_factors(input_ids: Tensor, *arguments: Any, **options: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = prepare(input_ids, *arguments, **options)
        prompt, cache = options.get("inputs_embeds"), inputs.get("past_key_values")
        if prompt is None or cache is None or inputs.get("inputs_embeds") is not None:
            return inputs  # the first forward
        length = prompt.shape[1] + input_ids.shape[1]
        if not any(cache.get_seq_length() <= bound < length for bound in bounds):
            return inputs
        answer = backbone.get_input_embeddings()(input_ids)
        batch = len(input_ids)
        everything = torch.arange(length, device=input_ids.device)
        inputs |= {
            "input_ids": None,
            "inputs_embeds": torch.cat([prompt, answer.to(prompt.dtype)], 1),
            "past_key_values": None,  # the backbone makes a new one
            "position_ids": everything.expand(batch, -1),
            "attention_mask": torch.ones(batch, length, dtype=torch.long, device=input_ids.device),
        }
        if "cache_position" in inputs:
            inputs["cache_position"] = everything
        return inputs

    # An attribute of the object hides the method of its class.
    backbone.prepare_inputs_for_generation = with_new_factors
    try:
        yield
    finally:
        del backbone.prepare_inputs_for_generation


def _kinds(module: nn.Module) -> set[str]:
    kinds = getattr(module, "rope_type", None)
    return set(kinds.values()) if isinstance(kinds, dict) else {str(kinds)}


def _bound(module: nn.Module, layer_type: str | None) -> int | None:
    """The switching length of a rotary embedding for a type of layer."""
    config: Any = module.config
    settings = config.rope_parameters
    one = settings if layer_type is None else settings[layer_type]
    if one.get("rope_type") != LONGROPE:
        return None
    return int(one["original_max_position_embeddings"])
