"""LoRA layers that cost little beyond the layer they adapt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from clara.backbone.lora_library import Linear

MERGE_ROWS = 256


class MergingLinear(Linear):
    """peft's LoRA linear, with fewer steps where there are no gradients, in float32.

    `W x + s B (A x)` writes the output twice more and multiplies by two thin matrices. For few
    rows the second product is added to the output as it is made. From `MERGE_ROWS` rows on, making
    `W + s B A` first, in a buffer that lives for this call only, is cheaper: its cost does not grow
    with the rows. (In lower precision that sum would round the adapter's change away.)
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        weight: Tensor = base.weight
        if (
            torch.is_grad_enabled()
            or self.training
            or self.disable_adapters
            or self.merged
            or x.dtype != torch.float32
            or weight.dtype != torch.float32
            or torch.is_autocast_enabled(x.device.type)
        ):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        scaling = self.scaling[name]
        if x.numel() >= MERGE_ROWS * x.shape[-1]:
            return linear(x, torch.addmm(weight, up, down, alpha=scaling), base.bias)
        out = linear(x, weight, base.bias)
        hidden = linear(x, down).view(-1, len(down))
        out.view(-1, len(up)).addmm_(hidden, up.T, alpha=scaling)
        return out
