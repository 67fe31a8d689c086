"""LoRA layers that cost almost nothing on long inputs."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn.functional import linear

MERGE_ROWS = 256


class MergingLinear(Linear):
    """peft's LoRA linear, which merges on the fly when that is cheaper.

    `W x + s B (A x)` writes the output twice more and multiplies by two thin matrices. For many
    rows, making `W + s B A` first, in a buffer that lives for this call only, is cheaper: its
    cost does not grow with the rows. This is done without gradients, in float32 and from
    `MERGE_ROWS` rows on; in lower precision the sum would round the adapter's change away.
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
            or x.numel() < MERGE_ROWS * x.shape[-1]
            or torch.is_autocast_enabled(x.device.type)
        ):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        merged = torch.addmm(weight, up, down, alpha=self.scaling[name])
        return linear(x, merged, base.bias)
