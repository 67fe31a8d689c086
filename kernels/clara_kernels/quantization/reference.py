"""Symmetric quantization: code = round(x / scale), with the largest |x| at the largest code.

Every step is one correctly rounded float32 operation, so all implementations agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype

GROUP = 64  # values that share a scale in 4 bits
LARGEST_CODE = {8: 127, 4: 7}
# Scales stay where they are precise, and where scale * code is still finite.
SMALLEST_SCALE = 2.0**-126
LARGEST_SCALE = {8: float.fromhex("0x1.020406p+121"), 4: float.fromhex("0x1.249248p+125")}


def group_count(width: int) -> int:
    """Scales of a row of `width` values in 4 bits."""
    return (width + GROUP - 1) // GROUP


def quantize(memory: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of the rows of memory `[R, H]`; see `clara_kernels.quantize_memory`."""
    values = memory.to(accumulation_dtype(memory))
    if bits == 8:
        scales = scales_of(values, bits)
        return _codes(values, scales[:, None], bits), scales
    rows, width = values.shape
    groups = group_count(width)
    values = torch.nn.functional.pad(values, (0, groups * GROUP - width)).view(rows, groups, GROUP)
    scales = scales_of(values, bits)  # [R, groups]
    codes = _codes(values, scales[..., None], bits).view(torch.uint8)
    codes = codes.view(rows, groups * GROUP // 2, 2)
    packed = (codes[..., 0] & 15) | (codes[..., 1] << 4)
    return packed[:, : (width + 1) // 2].contiguous(), scales


def scales_of(values: Tensor, bits: int) -> Tensor:
    """The scales of the last dimension, float32."""
    highest = values.abs().amax(-1)  # NaN if any value is
    scales = (highest / LARGEST_CODE[bits]).float()
    bounded = scales.clamp(SMALLEST_SCALE, LARGEST_SCALE[bits])
    scales = torch.where(highest == 0, 0.0, bounded)
    return torch.where(highest <= torch.finfo(torch.float32).max, scales, torch.nan)


def _codes(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """int8; 0 where the scale is 0 or NaN."""
    steps = torch.where(scales > 0, values / scales, 0.0).round()
    return steps.clamp(-LARGEST_CODE[bits], LARGEST_CODE[bits]).to(torch.int8)


def dequantize(codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Rows `[R, width]` in `dtype`; see `clara_kernels.dequantize_memory`."""
    if codes.dtype == torch.int8:
        return (codes.float() * scales[:, None]).to(dtype)
    signed = codes.view(torch.int8)
    # Shifts of int8 keep the sign.
    pairs = torch.stack([(signed << 4) >> 4, signed >> 4], -1)  # [R, bytes, 2]
    values = pairs.flatten(1)[:, :width].float()
    return (values * scales.repeat_interleave(GROUP, 1)[:, :width]).to(dtype)
