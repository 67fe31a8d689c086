"""The reference on slices of rows that stay in the cache between its passes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import reference

_SLICE_VALUES = 1 << 18


def quantize(memory: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As `reference.quantize`."""
    rows, width = memory.shape
    if rows * width <= _SLICE_VALUES:
        return reference.quantize(memory, bits)
    groups = (rows,) if bits == 8 else (rows, reference.group_count(width))
    scales = torch.empty(groups, dtype=torch.float32)
    bytes_per_row = width if bits == 8 else (width + 1) // 2
    codes = torch.empty(rows, bytes_per_row, dtype=torch.int8 if bits == 8 else torch.uint8)
    for part in _slices(rows, width):
        codes[part], scales[part] = reference.quantize(memory[part], bits)
    return codes, scales


def dequantize(codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """As `reference.dequantize`."""
    rows = codes.shape[0]
    if rows * width <= _SLICE_VALUES:
        return reference.dequantize(codes, scales, width, dtype)
    out = torch.empty(rows, width, dtype=dtype)
    for part in _slices(rows, width):
        out[part] = reference.dequantize(codes[part], scales[part], width, dtype)
    return out


def _slices(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _SLICE_VALUES // width)
    for start in range(0, rows, step):
        yield slice(start, start + step)
