"""The public `quantize_memory` and `dequantize_memory`, and their registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import (
    index_of,
    require_floating,
    require_same_device,
    require_shape,
    require_tensor,
)
from ..dispatch import declare
from . import cpu, reference
from .reference import group_count

_OUTPUTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def quantize_memory(memory: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Memory vectors as small integers, `memory ≈ codes * scales`.

    In 8 bits every row of H values has one scale, max |x| / 127. In 4 bits every group of 64
    values in a row has one, max |x| / 7; the last group of a row may be short. A code is x / scale
    rounded to the nearest integer, ties to even. Then |x - code * scale| ≤ scale / 2 · (1 + 2⁻¹⁵);
    scales are at least 2⁻¹²⁶, so that this holds for the smallest values too. A row or group of
    zeros has scale 0. A row or group with a value that is NaN, infinite or beyond float32 has
    scale NaN and codes 0, and `dequantize_memory` returns NaN for it.

    Args:
        memory: `[..., H]`, a row per memory vector, any floating-point dtype, H at least 1.
        bits: 8 or 4.

    Returns:
        Codes and float32 scales, the same bits on every device. With 8 bits codes are int8
        `[..., H]` within ±127, scales `[...]`. With 4 bits codes are uint8 `[..., ⌈H/2⌉]`: value
        2i is the low half of byte i, value 2i + 1 the high half, each in two's complement within
        ±7, and 0 in the half that an odd H leaves over; scales are `[..., ⌈H/64⌉]`.
        Not differentiable: the result is detached.

    Raises:
        TypeError: memory is not a floating-point tensor.
        ValueError: memory has no dimension or an empty last one, or bits is neither 8 nor 4.

    Examples:
        >>> import torch
        >>> from clara_kernels import quantize_memory
        >>> codes, scales = quantize_memory(torch.tensor([[1.27, -0.5, 0.02]]))
        >>> codes
        tensor([[127, -50,   2]], dtype=torch.int8)
    """
    require_floating("memory", memory)
    _require_rows("memory", memory, "[..., H] with H of at least 1")
    number = index_of(bits)
    if number not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits!r}")
    bits = number
    leading, width = memory.shape[:-1], memory.shape[-1]
    rows = memory.detach().reshape(leading.numel(), width)
    codes, scales = torch.ops.clara.quantize_memory(rows, bits)
    if bits == 8:
        return codes.view(memory.shape), scales.view(leading)
    return codes.view(*leading, codes.shape[1]), scales.view(*leading, scales.shape[1])


def dequantize_memory(
    codes: Tensor,
    scales: Tensor,
    *,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Memory vectors from what `quantize_memory` returned: code times scale.

    The product is made in float32 and then rounded to `dtype`.

    Args:
        codes: int8 `[..., H]`, or uint8 `[..., ⌈H/2⌉]` for 4 bits; the dtype tells which.
        scales: float32, `[...]` or `[..., ⌈H/64⌉]`.
        width: H. None takes all codes; required for 4 bits if H is odd.
        dtype: of the result; float32, float16, bfloat16 or float64.

    Returns:
        `[..., H]` in `dtype`. Not differentiable: the result is detached.

    Raises:
        TypeError: a tensor or dtype is not of the stated type.
        ValueError: shapes, width or devices do not match.

    Examples:
        >>> import torch
        >>> from clara_kernels import dequantize_memory, quantize_memory
        >>> memory = torch.randn(10, 16, 64)
        >>> codes, scales = quantize_memory(memory, bits=4)
        >>> codes.shape
        torch.Size([10, 16, 32])
        >>> error = (dequantize_memory(codes, scales) - memory).abs()
        >>> bool((error <= scales * 0.51).all())
        True
    """
    require_tensor("codes", codes)
    if codes.dtype not in (torch.int8, torch.uint8):
        raise TypeError(f"codes must be int8 (8 bits) or uint8 (4 bits), got {codes.dtype}")
    require_tensor("scales", scales)
    if scales.dtype != torch.float32:
        raise TypeError(f"scales must be float32, got {scales.dtype}")
    if dtype not in _OUTPUTS:
        accepted = ", ".join(str(each) for each in _OUTPUTS)
        raise TypeError(f"dtype must be one of {accepted}, got {dtype!r}")
    _require_rows("codes", codes, "[..., H] or [..., ⌈H/2⌉], not empty in the last dimension")
    leading, columns = codes.shape[:-1], codes.shape[-1]
    width = _width(codes, width)
    groups = (group_count(width),) if codes.dtype == torch.uint8 else ()
    expected = (*leading, *groups)
    require_shape("scales", scales, "{}", scales.shape == expected, list(expected))
    require_same_device("scales", scales, "codes", codes)
    rows = leading.numel()
    flat = scales.detach().reshape(rows, *groups)
    values = torch.ops.clara.dequantize_memory(codes.reshape(rows, columns), flat, width, dtype)
    return values.view(*leading, width)


def _require_rows(name: str, value: Tensor, layout: str) -> None:
    require_shape(name, value, layout, value.dim() >= 1 and value.shape[-1] >= 1)


def _width(codes: Tensor, width: int | None) -> int:
    columns = codes.shape[-1]
    four = codes.dtype == torch.uint8
    if width is None:
        return 2 * columns if four else columns
    number = index_of(width)
    if number is None:
        raise TypeError(f"width must be an int or None, got {type(width).__name__}")
    width = number
    if (width + 1) // 2 != columns if four else width != columns:
        accepted = f"{2 * columns - 1} or {2 * columns}" if four else str(columns)
        raise ValueError(
            f"width must be {accepted} for codes of shape {list(codes.shape)}, got {width}"
        )
    return width


def _fake_quantize(memory: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    rows, width = memory.shape
    if bits == 8:
        scales = memory.new_empty(rows, dtype=torch.float32)
        return memory.new_empty(rows, width, dtype=torch.int8), scales
    scales = memory.new_empty(rows, group_count(width), dtype=torch.float32)
    return memory.new_empty(rows, (width + 1) // 2, dtype=torch.uint8), scales


def _fake_dequantize(codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Any:
    return codes.new_empty(codes.shape[0], width, dtype=dtype)


declare(
    "quantize_memory",
    "(Tensor memory, int bits) -> (Tensor codes, Tensor scales)",
    fake=_fake_quantize,
    reference=reference.quantize,
    cpu=cpu.quantize,
    triton="quantization.triton:quantize",
)
declare(
    "dequantize_memory",
    "(Tensor codes, Tensor scales, SymInt width, ScalarType dtype) -> Tensor",
    fake=_fake_dequantize,
    reference=reference.dequantize,
    cpu=cpu.dequantize,
    triton="quantization.triton:dequantize",
)
