"""LoRA layers that cost little beyond the layer they adapt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from clara.backbone.lora_library import Linear

MERGE_ROWS = 256


class MergingLinear(Linear):
    """peft's LoRA linear, with fewer steps.

    Without gradients, in float32: `W x + s B (A x)` writes the output twice more and multiplies by
    two thin matrices. For few rows the second product is added to the output as it is made. From
    `MERGE_ROWS` rows on, making `W + s B A` first, in a buffer that lives for this call only, is
    cheaper: its cost does not grow with the rows. (In lower precision that sum would round the
    adapter's change away.)

    With gradients, on a CPU without dropout: see `_AdaptedProduct`.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        if torch.is_grad_enabled() or self.training:
            return self._with_gradients(x, *args, **kwargs)
        base = self.get_base_layer()
        weight: Tensor = base.weight
        if (
            x.dtype != torch.float32
            or weight.dtype != torch.float32
            or torch.is_autocast_enabled(x.device.type)
        ):
            return super().forward(x, *args, **kwargs)
        down, up, scaling = self._active()
        if x.numel() >= MERGE_ROWS * x.shape[-1]:
            return linear(x, torch.addmm(weight, up, down, alpha=scaling), base.bias)
        out = linear(x, weight, base.bias)
        hidden = linear(x, down).view(-1, len(down))
        out.view(-1, len(up)).addmm_(hidden, up.T, alpha=scaling)
        return out

    def _with_gradients(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        weight, bias = base.weight, base.bias
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        if (
            x.device.type != "cpu"
            or weight.requires_grad
            or (bias is not None and bias.requires_grad)
            or (dropout.training and getattr(dropout, "p", 0) > 0)
        ):
            return super().forward(x, *args, **kwargs)
        dtype = weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        down, up, scaling = self._active()
        if not torch.is_autocast_enabled("cpu") and not x.dtype == dtype == down.dtype:
            return super().forward(x, *args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            made: Tensor = _AdaptedProduct.apply(
                x.to(dtype), _cast(weight, dtype), bias, down, up, scaling
            )
        return made

    def _active(self) -> tuple[Tensor, Tensor, float]:
        """A `[r, in]`, B `[out, r]` and s of the active adapter."""
        (name,) = self.active_adapters
        return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight if weight.dtype == dtype else weight.to(dtype)


class _AdaptedProduct(torch.autograd.Function):
    """`x W' + s (x A') B' + b` with a frozen W, and its gradients in x, A and B.

    Autograd would make a node, a copy and a cast for each of the small products. Here the thin
    products are added to the large ones as they are made: three products forward, five backward.
    They run in the dtype of `x`; A and B stay in theirs, and so do their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        thin_down, thin_up = down.to(x.dtype), up.to(x.dtype)
        out = linear(x, weight, None if bias is None else bias.to(x.dtype))
        rows = x.reshape(-1, x.shape[-1])
        hidden = rows @ thin_down.T
        out.view(-1, len(up)).addmm_(hidden, thin_up.T, alpha=scaling)
        ctx.save_for_backward(x, weight, down, up, hidden)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, weight, down, up, hidden = ctx.saved_tensors
        wants_x, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        grad_rows = grad.reshape(-1, grad.shape[-1])
        thin = (grad_rows @ up.to(grad.dtype)).mul_(ctx.scaling)
        grad_x = grad_down = grad_up = None
        if wants_x:
            grad_x = grad_rows @ weight
            grad_x.addmm_(thin, down.to(grad.dtype))
            grad_x = grad_x.view(x.shape)
        if wants_down:
            grad_down = (thin.T @ x.reshape(-1, x.shape[-1])).to(down.dtype)
        if wants_up:
            grad_up = (grad_rows.T @ hidden).mul_(ctx.scaling).to(up.dtype)
        return grad_x, None, None, grad_down, grad_up, None
