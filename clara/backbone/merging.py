"""A copy of the backbone with the generator's weights merged in."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from clara.backbone.adapters import GENERATOR, Adapters
from clara.backbone.free_memory import free_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parameter_versions(parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
    """Changes when a parameter is written to, except through `.data` or by a fused optimizer."""
    return tuple(version for p in parameters for version in (p._version, p.data_ptr()))


def merged_copy(backbone: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """A backbone without LoRA layers whose linear weights contain the adapter.

    Weights that the adapter does not touch (embeddings, norms, output head) are shared with the
    original.

    Raises:
        ValueError: the backbone is quantized.
    """
    if getattr(backbone, "is_quantized", False):
        raise ValueError("merge_generator needs a backbone that is not quantized")
    from clara.backbone.lora_library import LoraLayer

    touched = {
        id(layer.get_base_layer().weight)
        for layer in backbone.modules()
        if isinstance(layer, LoraLayer)
    }
    shared = {id(p): p for p in backbone.parameters() if id(p) not in touched}
    merged = copy.deepcopy(backbone, shared)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=False, adapter_names=[adapter])
            parent, _, attribute = name.rpartition(".")
            setattr(merged.get_submodule(parent), attribute, layer.get_base_layer())
    return merged.eval()


@dataclass(frozen=True)
class MergedGenerator:
    """A merged copy and the state of the generator it was made from."""

    backbone: PreTrainedModel
    version: tuple[int, ...]

    @classmethod
    def of(cls, backbone: PreTrainedModel, adapters: Adapters) -> MergedGenerator:
        return cls.around(merged_copy(backbone, GENERATOR), adapters)

    @classmethod
    def around(cls, merged: PreTrainedModel, adapters: Adapters) -> MergedGenerator:
        """For a backbone that contains the generator as it is."""
        return cls(merged, cls._version(adapters))

    def is_current(self, adapters: Adapters) -> bool:
        """Whether the generator's weights are still those that were merged."""
        return self.version == self._version(adapters)

    @staticmethod
    def _version(adapters: Adapters) -> tuple[int, ...]:
        return parameter_versions(adapters.parameters(GENERATOR).values())


def merged_copy_fits(backbone: PreTrainedModel) -> bool:
    """Whether the free memory of the backbone's device holds the weights a merged copy adds."""
    from clara.backbone.lora_library import LoraLayer

    weights = [
        layer.get_base_layer().weight
        for layer in backbone.modules()
        if isinstance(layer, LoraLayer)
    ]
    needed: int = sum(weight.nbytes for weight in weights)
    return needed < 0.9 * free_memory(weights[0].device)
