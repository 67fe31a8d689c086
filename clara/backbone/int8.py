"""Linear layers whose frozen weights are held in 8 bits, with a scale for each row.

The weights alone are rounded: activations stay in the model's dtype, or are rounded to 16 bits. It
is meant for CPUs, where a product for few rows takes as long as reading the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clara.backbone.processor import int8_instructions

FEW_ROWS = 32
"""At most so many rows are multiplied as integers, on processors with instructions for it."""

_CODES = 127  # the largest, of both signs
_WIDE = 256 * 126  # the largest activation in 16 bits, with room for rounding in its upper half


def quantized_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes, and the scales they are to be multiplied by.

    Scales are values of bfloat16, so that a product with them is rounded once in every dtype.

    Args:
        weight: `[outputs, inputs]`, of a floating-point dtype.

    Returns:
        int8 `[outputs, inputs]` within ±127, and float32 `[outputs]`. A row of zeros has the scale
        1; one that holds NaN or infinity has such a scale, and only NaN comes of it.
    """
    exact = weight.detach().float()
    scales = (exact.abs().amax(1) / _CODES).bfloat16().float()
    scales[scales == 0] = 1
    codes = (exact / scales[:, None]).round_().clamp_(-_CODES, _CODES).nan_to_num_(0)
    return codes.to(torch.int8), scales


class Int8Linear(nn.Linear):
    """`x W' + b` with a frozen W in int8 and a scale for each of its rows.

    Gradients reach x alone. It computes in the dtype of x, or in that of autocast.

    Attributes:
        weight: int8 `[outputs, inputs]`.
        scales: float32 `[outputs]`.
        compute_dtype: of the model's activations; by this name peft gives adapters the dtype.
    """

    scales: Tensor

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype) -> None:
        # Until it is loaded, the weight has the dtype in which it is read from a file.
        super().__init__(inputs, outputs, bias, device="meta", dtype=dtype)
        self.weight.requires_grad_(False)
        self.register_buffer("scales", torch.empty(outputs, dtype=torch.float32, device="meta"))
        self.compute_dtype = dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """As of any module, but scales stay in float32: float16 does not hold the small ones."""
        exact = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != torch.float32:
            self.scales = exact.to(self.scales.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x)

    def adapted(
        self,
        x: Tensor,
        down: Tensor | None = None,
        up: Tensor | None = None,
        scaling: float = 0.0,
    ) -> Tensor:
        """`x W' + s (x A') B' + b`, `[..., outputs]`.

        Args:
            x: `[..., inputs]`.
            down, up, scaling: A `[r, inputs]`, B `[outputs, r]` and s of a LoRA adapter.
        """
        kind = x.device.type
        mixed = torch.is_autocast_enabled(kind)
        rows = x.reshape(-1, x.shape[-1])
        if mixed:
            rows = rows.to(torch.get_autocast_dtype(kind))
        given = (rows, self.weight, self.scales, self.bias, down, up, scaling)
        with torch.autocast(kind, enabled=False) if mixed else nullcontext():
            if torch.is_grad_enabled():
                made: Tensor = _AdaptedProduct.apply(*given)
            else:
                made = _adapted_product(*given)[0]
        return made.view(*x.shape[:-1], self.out_features)


def _adapted_product(
    rows: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor | None]:
    """See `Int8Linear.adapted`; and `s x A'`, `[rows, r]`, for the gradients.

    What an adapter changes is in the sum before the sum is rounded: added to a product that was
    rounded to bfloat16, most of a small change would be lost.

    Many rows are multiplied by the codes, which are whole numbers that bfloat16 and float32 hold.
    The results are multiplied by the scales. That is cheaper than to multiply each weight, whose
    number does not shrink with the rows.
    """
    dtype = _exact_for_codes(rows.dtype)
    hidden = None
    if down is not None:
        hidden = (rows.to(dtype) @ down.to(dtype).T).mul_(scaling)
    if _as_integers(rows):
        out = _integer_product(rows, codes, scales)
        if hidden is not None and up is not None:
            out.addmm_(hidden.float(), up.float().T)
        out = out.to(rows.dtype)
    else:
        weight = codes.to(dtype)
        if hidden is None or up is None:
            out = rows.to(dtype) @ weight.T
        else:
            out = hidden @ (up / scales[:, None]).to(dtype).T
            out.addmm_(rows.to(dtype), weight.T)
        out = out.mul_(scales.to(dtype)).to(rows.dtype)
    return (out if bias is None else out.add_(bias)), hidden


def _exact_for_codes(dtype: torch.dtype) -> torch.dtype:
    """float16 holds no sums of products with codes: they may exceed its range."""
    return torch.float32 if dtype == torch.float16 else dtype


def _as_integers(rows: Tensor) -> bool:
    return 0 < len(rows) <= FEW_ROWS and rows.device.type == "cpu" and _has_instructions()


@torch.compiler.assume_constant_result
def _has_instructions() -> bool:
    return bool(int8_instructions())


def _integer_product(rows: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """`rows W'` in float32, `[rows, outputs]`.

    Rows are rounded to 16 bits, relative to the largest of each: an upper and a lower half of 8
    bits, which one product of integers multiplies. A row with an infinity gives NaN, also where a
    product in floating point would be infinite.
    """
    exact = rows.float()
    unit = exact.abs().amax(1, keepdim=True).div_(_WIDE).clamp_min_(torch.finfo().tiny)
    whole = exact.div(unit).round_()
    upper = whole.add(128).div_(256).floor_()
    lower = whole.sub_(upper, alpha=256)
    halves = torch.cat([upper, lower]).to(torch.int8)
    products = torch._int_mm(halves, codes.T)
    out = products[: len(rows)].float().mul_(256).add_(products[len(rows) :])
    return out.mul_(unit).mul_(scales)


class _AdaptedProduct(torch.autograd.Function):
    """`_adapted_product`, and its gradients in x, A and B.

    The weight is kept in 8 bits for the backward pass, too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        scaling: float,
    ) -> Tensor:
        out, hidden = _adapted_product(rows, codes, scales, bias, down, up, scaling)
        ctx.save_for_backward(rows, codes, scales, down, up, hidden)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, codes, scales, down, up, hidden = ctx.saved_tensors
        grad_rows = grad_down = grad_up = None
        thin: Any = None if down is None else (grad @ up.to(grad.dtype)).mul_(ctx.scaling)
        if ctx.needs_input_grad[0]:
            dtype = _exact_for_codes(grad.dtype)
            scaled = grad.to(dtype) * scales.to(dtype)
            if thin is None:
                grad_rows = scaled @ codes.to(dtype)
            else:
                grad_rows = thin.to(dtype) @ down.to(dtype)
                grad_rows.addmm_(scaled, codes.to(dtype))
            grad_rows = grad_rows.to(grad.dtype)
        if ctx.needs_input_grad[4]:
            grad_down = (thin.T @ rows).to(down.dtype)
        if ctx.needs_input_grad[5]:
            grad_up = (grad.T @ hidden.to(grad.dtype)).to(up.dtype)
        return grad_rows, None, None, None, grad_down, grad_up, None
