"""Keys and values of what every prompt begins with, computed once.

A generator's prompt begins with the template's words up to the first memory slot, whatever the
question and the documents. At high compression that is nearly half of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from clara.merging import parameter_versions
from clara.prompts import Prompt

_OTHER_CACHES = ("cache_implementation", "prefill_chunk_size", "prompt_lookup_num_tokens")


@dataclass(frozen=True)
class PromptPrefix:
    """The state of a backbone after the first tokens of a prompt.

    Attributes:
        ids: the tokens, `P` of them.
        adapter: the one they were computed with.
        version: of the backbone's parameters at that time.
        states: keys and values `[1, kv heads, P, head_dim]` of each layer.
    """

    ids: list[int]
    adapter: str | None
    version: tuple[int, ...]
    states: list[tuple[Tensor, Tensor]]


class PromptPrefixes:
    """The prefix that each backbone, merged or not, has computed last."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[PreTrainedModel, PromptPrefix] = WeakKeyDictionary()

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()

    @torch.no_grad()
    def cache(
        self, backbone: PreTrainedModel, adapter: str | None, ids: list[int], batch_size: int
    ) -> DynamicCache:
        """A cache for `generate` that begins with the prefix in every row.

        Args:
            adapter: the one that is active in `backbone`.
            ids: the prefix; computed unless it is what was computed last and no parameter has
                been written to since.
        """
        version = parameter_versions(backbone.parameters())
        prefix = self._kept.get(backbone)
        if prefix is None or (prefix.ids, prefix.adapter, prefix.version) != (
            ids,
            adapter,
            version,
        ):
            prefix = PromptPrefix(ids, adapter, version, _states(backbone, ids))
            self._kept[backbone] = prefix
        cache = _empty_cache(backbone)
        for layer, (keys, values) in enumerate(prefix.states):
            rows = batch_size, -1, -1, -1
            cache.update(keys.expand(rows), values.expand(rows), layer)
        return cache


def prefix_ids(prompts: Sequence[Prompt]) -> list[int]:
    """Tokens before the first memory slot; none unless all prompts have the same there."""
    slots = [prompt.first_slot for prompt in prompts]
    first = prompts[0].ids[: slots[0]]
    if None in slots or any(p.ids[:slot] != first for p, slot in zip(prompts, slots, strict=True)):
        return []
    return first


def can_continue(backbone: PreTrainedModel, settings: GenerationConfig) -> bool:
    """Whether `generate` can go on from a prefix.

    It cannot where the cache is not transformers' plain one: in a window that slides, padding
    after the prefix would count, and of beams `generate` makes copies but not of a given cache.
    Nor where the rotation of positions depends on the length of the whole prompt.
    """

    def asked(name: str) -> object:
        given = getattr(settings, name, None)
        return getattr(backbone.generation_config, name, None) if given is None else given

    return (
        asked("use_cache") is not False
        and asked("num_beams") in (None, 1)
        and not any(map(asked, _OTHER_CACHES))
        and not _rotations(backbone) & {"dynamic", "longrope"}
        and all(type(layer) is DynamicLayer for layer in _empty_cache(backbone).layers)
    )


def _rotations(backbone: PreTrainedModel) -> set[str]:
    """Kinds of rotary embedding; transformers has one for all layers or one for each type."""
    settings = getattr(_text_config(backbone), "rope_parameters", None) or {}
    each = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    return {str(one.get("rope_type")) for one in each}


def _states(backbone: PreTrainedModel, ids: list[int]) -> list[tuple[Tensor, Tensor]]:
    cache = _empty_cache(backbone)
    device = backbone.get_input_embeddings().weight.device
    backbone.base_model(
        input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True
    )
    return [(layer.keys, layer.values) for layer in cache.layers]


def _empty_cache(backbone: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=_text_config(backbone))


def _text_config(backbone: PreTrainedModel) -> PreTrainedConfig:
    return backbone.config.get_text_config(decoder=True)
