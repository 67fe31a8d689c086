"""Compute keys and values of the common beginning of all prompts once.

A generator's prompt begins with the template's words up to the first memory slot, whatever the
question and the documents. At high compression that is nearly half of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clara.backbone.attention_patterns import CLARA_SDPA, FULL, attention_patterns
from clara.backbone.output_path import body_of
from clara.backbone.rotary import rope_settings
from clara.text.prompts import Prompt

if TYPE_CHECKING:
    from transformers import DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel

_plain: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class PromptPrefix:
    """The state of a backbone after the first tokens of a prompt.

    Attributes:
        ids: the tokens, `P` of them.
        adapter: the one they were computed with.
        version: `state_version` of the backbone at that time.
        states: keys and values `[1, kv heads, P, head_dim]` of each layer.
    """

    ids: list[int]
    adapter: str | None
    version: tuple[object, ...]
    states: list[tuple[Tensor, Tensor]]

    @classmethod
    @torch.no_grad()
    def read(
        cls,
        backbone: PreTrainedModel,
        adapter: str | None,
        ids: list[int],
        version: tuple[object, ...] = (),
    ) -> PromptPrefix:
        """Compute it.

        Args:
            adapter: the one that is active in `backbone`.
            ids: tokens of the vocabulary, at least one.
        """
        cache = empty_cache(backbone)
        device = backbone.get_input_embeddings().weight.device
        body_of(backbone)(
            input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True
        )
        states = [(layer.keys, layer.values) for layer in cache.layers]
        return cls(ids, adapter, version, states)

    def cropped(self, length: int) -> PromptPrefix:
        """Its first `length` tokens; the keys and values are views."""
        states = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.states]
        return PromptPrefix(self.ids[:length], self.adapter, self.version, states)

    def cache(self, backbone: PreTrainedModel, batch_size: int) -> DynamicCache:
        """transformers' cache that begins with it in each of `batch_size` rows.

        Generation writes to the cache and leaves `states` as they are.
        """
        cache = empty_cache(backbone)
        for layer, (keys, values) in enumerate(self.states):
            rows = batch_size, -1, -1, -1
            cache.update(keys.expand(rows), values.expand(rows), layer)
        return cache


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
    ) -> DynamicCache | None:
        """A cache for `generate` that begins with the prefix in every row.

        Args:
            adapter: the one that is active in `backbone`.
            ids: the prefix; computed unless it is what was computed last and nothing has been
                written since.

        Returns:
            None where writing to the backbone could go unnoticed.
        """
        version = state_version(backbone)
        if version is None:
            self._kept.pop(backbone, None)
            return None
        prefix, key = self._kept.get(backbone), (ids, adapter, version)
        if prefix is None or (prefix.ids, prefix.adapter, prefix.version) != key:
            prefix = PromptPrefix.read(backbone, adapter, ids, version)
            self._kept[backbone] = prefix
        return prefix.cache(backbone, batch_size)


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
    after the prefix would count. Nor by beams, of which `generate` makes copies but not of a given
    cache, nor with an assistant, whose first pass would read the prefix again. Nor where the
    rotation of positions depends on the length of the whole prompt.
    """
    from transformers.generation import GenerationMode

    plain = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

    def asked(name: str) -> object:
        given = getattr(settings, name, None)
        return getattr(backbone.generation_config, name, None) if given is None else given

    return (
        asked("use_cache") is not False
        and not asked("cache_implementation")
        and not asked("prefill_chunk_size")
        and all(s.get_generation_mode() in plain for s in (settings, backbone.generation_config))
        and _has_plain_layers(backbone)
    )


def _has_plain_layers(backbone: PreTrainedModel) -> bool:
    """Whether no layer has a window or rotates by length: found once for each backbone, as asking
    its configuration takes milliseconds."""
    known = _plain.get(backbone)
    if known is None:
        from transformers.cache_utils import DynamicLayer

        known = _plain[backbone] = (
            not _rotations(backbone) & {"dynamic", "longrope"}
            and _attends_to_all(backbone)
            and all(type(layer) is DynamicLayer for layer in empty_cache(backbone).layers)
        )
    return known


def state_version(backbone: nn.Module) -> tuple[object, ...] | None:
    """Changes with all that the backbone's result depends on, but for writing through `.data`.

    None where a write could go unnoticed: to what trains, by a fused optimizer, and to tensors made
    under `torch.inference_mode`.
    """
    # By hand: `modules()` and `parameters()` take milliseconds. Autocast holds in a thread.
    types = ("cpu", "cuda")
    found: list[object] = [
        torch.get_autocast_dtype(t) for t in types if torch.is_autocast_enabled(t)
    ]
    modules: list[nn.Module | None] = [backbone]
    for module in modules:  # which grows
        if module is None:
            continue
        modules.extend(module._modules.values())
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is None:
                    continue
                if tensor.requires_grad or tensor.is_inference():
                    return None
                found += (tensor._version, tensor.data_ptr())
        scaling = module.__dict__.get("scaling")
        if isinstance(scaling, dict):  # of the adapters in a LoRA layer
            found += scaling.values()
    return tuple(found)


def _rotations(backbone: PreTrainedModel) -> set[str]:
    return {str(one.get("rope_type")) for one in rope_settings(backbone)}


def _attends_to_all(backbone: PreTrainedModel) -> bool:
    """Whether no layer has a window, which some families say by the mask and not by the cache."""
    if backbone.config._attn_implementation != CLARA_SDPA:
        return True
    return all(pattern == FULL for pattern in attention_patterns(backbone).values())


def empty_cache(backbone: PreTrainedModel) -> DynamicCache:
    """transformers' plain cache for the backbone's layers."""
    from transformers import DynamicCache

    return DynamicCache(config=_text_config(backbone))


def _text_config(backbone: PreTrainedModel) -> PreTrainedConfig:
    return backbone.config.get_text_config(decoder=True)
