"""Quantization in a few lines of PyTorch, a pass over the data for each."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_rows(memory: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and a scale for each row of `[R, H]`, none of them zero."""
    values = memory.float()
    scales = values.abs().amax(-1) / 127
    return (values / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def quantize_groups(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Two 4-bit codes in a byte and a scale for each 64 values; H has to be a multiple of 64."""
    values = memory.float().unflatten(-1, (-1, 64))
    scales = values.abs().amax(-1) / 7
    codes = (values / scales[..., None]).round().clamp(-7, 7).to(torch.int8).flatten(1)
    return (codes[:, ::2] & 15 | codes[:, 1::2] << 4).view(torch.uint8), scales


def dequantize_rows(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes.float() * scales[:, None]).to(dtype)


def dequantize_groups(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    signed = codes.view(torch.int8)
    values = torch.stack([signed << 4 >> 4, signed >> 4], -1).flatten(1).unflatten(1, (-1, 64))
    return (values.float() * scales[..., None]).flatten(1).to(dtype)
