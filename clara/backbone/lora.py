"""LoRA layers that cost little beyond the layer they adapt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from clara.backbone.int8 import Int8Linear
from clara.backbone.lora_library import Linear
from clara.backbone.projection import project
from clara_kernels.adapted_linear import (
    adapted_linear,
    gradient_of_down,
    gradient_of_up,
    gradients,
    multiplies_here,
    trains_here,
    with_change,
)

MERGE_ROWS = 256
"""In float32, from so many rows on the weight is merged for the call."""

FLOAT32_ROWS = 48
"""In bfloat16, for at most so many rows the thin products are made in float32."""


class MergingLinear(Linear):
    """peft's LoRA linear, with fewer steps.

    Without gradients, in float32 anywhere and in bfloat16 on a CPU. `W x + s B (A x)` writes the
    output twice more and multiplies by two thin matrices. See `_adapted_product` for what is done
    in its place. In float32 from `MERGE_ROWS` rows on, making `W + s B A` first, in a buffer that
    lives for this call only, is cheaper: its cost does not grow with the rows. (In bfloat16 that
    sum would round the adapter's change away.)

    With gradients, on a CPU without dropout: see `_AdaptedProduct`.
    """

    is_leaf_in_evaluation = True
    """For `modules_without_adapters`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        state = vars(self)  # peft's properties and PyTorch's attributes take microseconds each
        if state["_disable_adapters"] and not state["merged_adapters"]:
            return project(state["_modules"]["base_layer"], x)
        if state["_disable_adapters"] or state["merged_adapters"]:
            return super().forward(x, *args, **kwargs)
        if torch.is_grad_enabled() or state["training"]:
            return self._with_gradients(x, *args, **kwargs)
        base = state["_modules"]["base_layer"]
        weight: Tensor = base.weight
        fast = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and x.device.type == "cpu")
        if not fast or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        down, up, scaling = self._active()
        if x.dtype == torch.bfloat16 and multiplies_here(weight):
            low = down.to(torch.bfloat16), up.to(torch.bfloat16)
            if multiplies_here(*low):
                return adapted_linear(x, weight, base.bias, *low, scaling)
        rows = x.reshape(-1, x.shape[-1])
        if x.dtype == torch.float32 and rows.shape[0] >= MERGE_ROWS:
            return linear(x, torch.addmm(weight, up, down, alpha=scaling), base.bias)
        out = _adapted_product(rows, weight, base.bias, down, up, scaling)
        return out.view(*x.shape[:-1], up.shape[0])

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
        state = vars(self)
        downs, ups = (state["_modules"][side]._modules for side in ("lora_A", "lora_B"))
        return downs[name].weight, ups[name].weight, state["scaling"][name]


class AdaptedInt8Linear(Linear):
    """peft's LoRA linear over an `Int8Linear`: the adapter is neither merged nor rounded to 8 bits.

    With gradients it is so without dropout; with dropout the two products are made apart.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Int8Linear = self.get_base_layer()
        if self.disable_adapters:
            return base(x)
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        if dropout.training and getattr(dropout, "p", 0) > 0:
            return super().forward(x, *args, **kwargs)
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return base.adapted(x, down, up, self.scaling[name])

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("an adapter cannot be merged into weights of 8 bits")


def _adapted_product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
) -> Tensor:
    """`x W' + s (x A') B' + b` without gradients, `[rows, out]` in the dtype of x.

    The thin product is written first, and the large one is added to it as it is made. Products
    accumulate in float32, so their sum is rounded once. In the other order, in bfloat16, `x W'`
    would be rounded before the adapter's change is added: most of a change of a thousandth is below
    half a step of bfloat16 there, and is lost. The bias comes last for the same reason: it may be
    large beside the change.

    For few rows a product costs what calling it costs, which is less in float32: there the thin
    products are made in float32.
    """
    # `len` of a tensor would go through Python, as long as some of the products take.
    dtype = torch.float32 if rows.shape[0] <= FLOAT32_ROWS else rows.dtype
    hidden = linear(rows.to(dtype), down.to(dtype))
    thin = hidden.new_empty(rows.shape[0], up.shape[0])
    thin.addmm_(hidden, up.to(dtype).T, beta=0, alpha=scaling)
    out = thin.to(rows.dtype)
    out.addmm_(rows, weight.T)
    return out if bias is None else out.add_(bias)


def _summed(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """What `with_change` makes, by PyTorch's products, but `x A'` before its scaling."""
    hidden = linear(rows, down)
    out = hidden.new_empty(rows.shape[0], up.shape[0])
    out.addmm_(hidden, up.T, beta=0, alpha=scaling)
    out.addmm_(rows, weight.T)
    return out if bias is None else out.add_(bias), hidden


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight if weight.dtype == dtype else weight.to(dtype)


class _AdaptedProduct(torch.autograd.Function):
    """`x W' + s (x A') B' + b` with a frozen W, and its gradients in x, A and B.

    Autograd would make a node, a copy and a cast for each of the small products. Here the large
    products are added to the thin ones as they are made: three products forward, five backward.
    They run in the dtype of `x`; A and B stay in theirs, and so do their gradients, whose sums are
    not rounded to that of `x` where `multiplies_here`. For the order see `_adapted_product`.
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
        rows = x.reshape(-1, x.shape[-1])
        low = down.to(x.dtype), up.to(x.dtype)
        if trains_here(rows, weight, *low):
            out, hidden = with_change(rows, weight, bias, *low, scaling)
            ctx.hidden_scaling = 1.0  # it is scaled already
        else:
            out, hidden = _summed(rows, weight, bias, *low, scaling)
            ctx.hidden_scaling = scaling
        ctx.save_for_backward(x, weight, hidden, *low)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], up.shape[0])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, weight, hidden, down, up = ctx.saved_tensors
        wants_x, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        rows, grad_rows = (each.reshape(-1, each.shape[-1]) for each in (x, grad))
        grad_x = grad_down = grad_up = None
        here = trains_here(grad_rows, weight, down, up)
        if wants_x and here:
            grad_x, thin = gradients(grad_rows, weight, down, up, ctx.scaling)
        else:
            thin = (grad_rows @ up).mul_(ctx.scaling)
            if wants_x:
                grad_x = thin @ down
                grad_x.addmm_(grad_rows, weight)
        if grad_x is not None:
            grad_x = grad_x.view(x.shape)
        here = here and multiplies_here(rows, hidden, thin)
        if wants_down:
            grad_down = gradient_of_down(thin, rows) if here else thin.T @ rows
        if wants_up:
            grad_up = gradient_of_up(grad_rows, hidden) if here else grad_rows.T @ hidden
            if ctx.hidden_scaling != 1:
                grad_up.mul_(ctx.hidden_scaling)
        return grad_x, None, None, grad_down, grad_up, None
