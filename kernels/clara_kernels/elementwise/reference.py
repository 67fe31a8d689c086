"""What the fused functions compute, in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """`x / sqrt(mean(x²) + epsilon) · weight`, computed in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * inverse * weight).to(dtype)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """`activation(gate) · up`, computed in float32 at least."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    made = silu(wide) if activation == "silu" else gelu(wide, approximate="tanh")
    return (made * up).to(gate.dtype)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, dtype: torch.dtype) -> Tensor:
    """`x · cosines + rotate_half(x) · sines`, computed in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, last = wide.chunk(2, -1)
    turned = torch.cat([-last, first], -1)
    return (wide * cosines[..., None, :] + turned * sines[..., None, :]).to(dtype)
