"""What a call computes in the layers of language models, counted while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.workload import layer_weights
from clara import Clara


class Work:
    """Positions that pass through layers, and how often their weights are read.

    Attention, LoRA and the output head are not counted. Every position counts in all layers, also
    where the last one computes memory rows alone.

    Args:
        model: what has the weights; merged or loaded again they are as many.
    """

    def __init__(self, model: Clara) -> None:
        self._weights, self._itemsize = layer_weights(model), model.dtype.itemsize
        self._counts: dict[str, list[int]] = {}

    def counted(
        self, name: str, call: Callable[[], Any], *backbones: PreTrainedModel
    ) -> Callable[[], Any]:
        """`call`, counting what it computes in `backbones`, to be asked for by `name`."""
        bodies = {backbone.base_model for backbone in backbones}

        def run() -> Any:
            counts = self._counts[name] = [0, 0, 0]
            with ExitStack() as hooks:
                for body in bodies:
                    hook = body.register_forward_pre_hook(partial(_count, counts), with_kwargs=True)
                    hooks.callback(hook.remove)
                return call()

        return run

    def amounts(self, name: str) -> dict[str, float]:
        """Positions, bytes of weights read, and FLOPs of the last call of this name.

        A pass whose gradients are computed counts twice: they go back through all weights, but not
        into them, as only adapters train.
        """
        positions, passes, computed = self._counts[name]
        return {
            "positions": positions,
            "bytes": self._weights * self._itemsize * passes,
            "flops": 2 * self._weights * computed,
        }


def _count(counts: list[int], module: Any, arguments: Any, named: dict[str, Any]) -> None:
    """Add a pass to positions, passes, and positions that are multiplied with all weights."""
    given = named.get("inputs_embeds")
    given = named["input_ids"] if given is None else given
    positions, times = given.shape[0] * given.shape[1], 1 + torch.is_grad_enabled()
    for place, amount in enumerate((positions, times, times * positions)):
        counts[place] += amount
