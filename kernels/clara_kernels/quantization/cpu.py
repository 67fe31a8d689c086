"""Slices of rows that stay in the cache between passes; quantization makes as few as it can."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ragged import accumulation_dtype
from ..slices import row_slices
from . import reference
from .reference import GROUP, group_count, scales_of

_SLICE_VALUES = 1 << 18


def quantize(memory: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As `reference.quantize`."""
    rows, width = memory.shape
    groups = 1 if bits == 8 else group_count(width)
    padding = 0 if bits == 8 else groups * GROUP - width
    columns = width if bits == 8 else (width + 1) // 2
    scales = torch.empty(rows, groups, dtype=torch.float32)
    codes = torch.empty(rows, columns, dtype=torch.int8 if bits == 8 else torch.uint8)
    for part in row_slices(rows, width, _SLICE_VALUES):
        values = memory[part].to(accumulation_dtype(memory))
        values = (pad(values, (0, padding)) if padding else values).unflatten(1, (groups, -1))
        scales[part] = of_part = scales_of(values, bits)
        steps = _steps(values, of_part).flatten(1)
        codes[part] = steps if bits == 8 else _packed(steps)[:, :columns]
    return codes, scales[:, 0] if bits == 8 else scales


def _steps(values: Tensor, scales: Tensor) -> Tensor:
    """Codes as floating-point numbers; 0 where the scale is 0 or NaN."""
    steps = values / torch.where(scales > 0, scales, torch.inf)[..., None]
    if scales.isnan().any():  # as inf / inf is
        steps.nan_to_num_()
    return steps.round_()


def _packed(steps: Tensor) -> Tensor:
    """Two of an even number of codes in a byte."""
    low, high = steps.to(torch.int8).view(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    return low & 15 | high << 4


def dequantize(codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """As `reference.dequantize`."""
    rows = codes.shape[0]
    if rows * width <= _SLICE_VALUES:
        return reference.dequantize(codes, scales, width, dtype)
    out = torch.empty(rows, width, dtype=dtype)
    for part in row_slices(rows, width, _SLICE_VALUES):
        out[part] = reference.dequantize(codes[part], scales[part], width, dtype)
    return out
