"""Quantization in one read and one write: a tile of rows, or of groups, per program.

Element positions are int64. Widths divisible by 32 are passed in units of 32, which lets the
compiler prove that 16-byte accesses are aligned, to the packed codes too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build
from .reference import GROUP, LARGEST_CODE, LARGEST_SCALE, SMALLEST_SCALE, group_count

_TILE = 4096  # values of a program
_VALUES = 512  # of a warp, 16 a thread
_WIDEST_BLOCK = 16384
_PASS_BLOCK = 8192


@triton.jit
def _magnitude(x):
    """|x|, infinite for NaN: a maximum would drop it."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def _scale_of(highest, LEVELS: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr):
    scale = tl.math.div_rn(highest, tl.full(highest.shape, LEVELS, tl.float32))
    scale = tl.minimum(tl.maximum(scale, SMALLEST), LARGEST)
    scale = tl.where(highest == 0.0, 0.0, scale)
    return tl.where(highest < float("inf"), scale, float("nan"))


@triton.jit
def _codes_of(x, scale, LEVELS: tl.constexpr):
    """int32 codes of x, by scales that broadcast to it."""
    m_some = scale + tl.zeros_like(x) > 0.0
    steps = tl.math.div_rn(x, tl.where(m_some, scale, 1.0))
    # Adding 1.5 * 2^23 leaves no bits below the unit: round to nearest, ties to even.
    steps = (steps + 12582912.0) - 12582912.0
    steps = tl.minimum(tl.maximum(steps, -LEVELS), LEVELS)
    return tl.where(m_some, steps, 0.0).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "units"])
def _quantize_8(
    p_x,
    p_codes,
    p_scales,
    rows,
    units,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """ROWS rows of at most BLOCK values, held in registers."""
    columns = units * UNIT
    o_r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_n = tl.arange(0, BLOCK)
    m = (o_r < rows)[:, None] & (o_n < columns)[None, :]
    o = o_r[:, None] * columns + o_n[None, :]
    x = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    scale = _scale_of(tl.max(_magnitude(x), 1), LEVELS, SMALLEST, LARGEST)  # [ROWS]
    codes = _codes_of(x, scale[:, None], LEVELS)
    tl.store(p_codes + o, codes.to(tl.int8), mask=m)
    tl.store(p_scales + o_r, scale, mask=o_r < rows)


@triton.jit(do_not_specialize=["units"])
def _quantize_8_long(
    p_x,
    p_codes,
    p_scales,
    units,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """One row in two passes, of which the second finds it in the cache."""
    columns = units * UNIT
    row = tl.program_id(0).to(tl.int64)
    p_x += row * columns
    p_codes += row * columns
    o_n = tl.arange(0, BLOCK)
    highest = tl.zeros([BLOCK], tl.float32)
    for o in range(0, columns, BLOCK):
        x = tl.load(p_x + o + o_n, mask=o + o_n < columns, other=0.0).to(tl.float32)
        highest = tl.maximum(highest, _magnitude(x))
    scale = _scale_of(tl.max(highest[None, :], 1), LEVELS, SMALLEST, LARGEST)  # [1]
    for o in range(0, columns, BLOCK):
        m_n = o + o_n < columns
        x = tl.load(p_x + o + o_n, mask=m_n, other=0.0).to(tl.float32)
        tl.store(p_codes + o + o_n, _codes_of(x, scale, LEVELS).to(tl.int8), mask=m_n)
    tl.store(p_scales + row + tl.arange(0, 1), scale)


@triton.jit
def _row_bytes(units, UNIT: tl.constexpr):
    """The bytes of a row of packed codes; as a multiple where it is one."""
    return units * (UNIT // 2) if UNIT % 2 == 0 else (units * UNIT + 1) // 2


@triton.jit(do_not_specialize=["rows", "units"])
def _quantize_4(
    p_x,
    p_codes,
    p_scales,
    rows,
    units,
    UNIT: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    LEVELS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """GROUPS groups of consecutive rows; the last of a row may be short."""
    columns = units * UNIT
    per_row = (columns + GROUP - 1) // GROUP
    o_g = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    m_g = o_g < rows.to(tl.int64) * per_row
    row, group = o_g // per_row, (o_g % per_row).to(tl.int32)
    o_n = (group * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    m = m_g[:, None] & (o_n < columns)
    x = tl.load((p_x + row * columns)[:, None] + o_n, mask=m, other=0.0).to(tl.float32)
    scale = _scale_of(tl.max(_magnitude(x), 1), LEVELS, SMALLEST, LARGEST)  # [GROUPS]
    codes = _codes_of(x, scale[:, None], LEVELS)
    low, high = tl.split(tl.reshape(codes, [GROUPS, GROUP // 2, 2]))
    packed = (low & 15) | (high & 15) << 4  # [GROUPS, GROUP / 2]

    row_bytes = _row_bytes(units, UNIT)
    o_b = (group * (GROUP // 2))[:, None] + tl.arange(0, GROUP // 2)[None, :]
    m = m_g[:, None] & (o_b < row_bytes)
    tl.store((p_codes + row * row_bytes)[:, None] + o_b, packed.to(tl.uint8), mask=m)
    tl.store(p_scales + o_g, scale, mask=m_g)


@triton.jit(do_not_specialize=["rows", "units"])
def _dequantize_8(
    p_codes,
    p_scales,
    p_out,
    rows,
    units,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of ROWS rows by BLOCK columns."""
    columns = units * UNIT
    tiles = (columns + BLOCK - 1) // BLOCK
    i_tile = tl.program_id(0)
    o_r = (i_tile // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_n = i_tile % tiles * BLOCK + tl.arange(0, BLOCK)
    m_r = o_r < rows
    m = m_r[:, None] & (o_n < columns)[None, :]
    o = o_r[:, None] * columns + o_n[None, :]
    codes = tl.load(p_codes + o, mask=m, other=0)  # [ROWS, BLOCK]
    scale = tl.load(p_scales + o_r, mask=m_r, other=0.0)
    tl.store(p_out + o, codes.to(tl.float32) * scale[:, None], mask=m)


@triton.jit(do_not_specialize=["rows", "units"])
def _dequantize_4(
    p_codes,
    p_scales,
    p_out,
    rows,
    units,
    UNIT: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """GROUPS groups of consecutive rows."""
    columns = units * UNIT
    per_row = (columns + GROUP - 1) // GROUP
    row_bytes = _row_bytes(units, UNIT)
    o_g = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    m_g = o_g < rows.to(tl.int64) * per_row
    row, group = o_g // per_row, (o_g % per_row).to(tl.int32)
    o_b = (group * (GROUP // 2))[:, None] + tl.arange(0, GROUP // 2)[None, :]
    m = m_g[:, None] & (o_b < row_bytes)
    packed = tl.load((p_codes + row * row_bytes)[:, None] + o_b, mask=m, other=0).to(tl.int32)
    # Each half moves to the top of the word, so that shifting it back keeps its sign.
    pairs = tl.join(packed << 28 >> 28, packed << 24 >> 28)  # [GROUPS, GROUP / 2, 2]
    codes = tl.reshape(pairs, [GROUPS, GROUP])
    scale = tl.load(p_scales + o_g, mask=m_g, other=0.0)
    o_n = (group * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    m = m_g[:, None] & (o_n < columns)
    values = codes.to(tl.float32) * scale[:, None]
    tl.store((p_out + row * columns)[:, None] + o_n, values, mask=m)


def _units(width: int) -> dict[str, int]:
    return {"units": width // 32, "UNIT": 32} if width % 32 == 0 else {"units": width, "UNIT": 1}


def _tile(width: int, widest: int) -> dict[str, int]:
    """ROWS and BLOCK of a tile, and its warps."""
    block = min(max(triton.next_power_of_2(width), 64), widest)
    rows = max(_TILE // block, 1)
    return {"ROWS": rows, "BLOCK": block, "num_warps": rows * block // _VALUES}


def _limits(bits: int) -> dict[str, float]:
    return {
        "LEVELS": LARGEST_CODE[bits],
        "SMALLEST": SMALLEST_SCALE,
        "LARGEST": LARGEST_SCALE[bits],
    }


_GROUP_TILE = {"GROUPS": _TILE // GROUP, "GROUP": GROUP, "num_warps": _TILE // _VALUES}
_LONG_TILE = {"BLOCK": _PASS_BLOCK, "num_warps": _PASS_BLOCK // _VALUES}


def quantize(memory: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and float32 scales of the rows of memory `[R, H]`."""
    rows, width = memory.shape
    memory = memory.contiguous()
    options = {**_units(width), **_limits(bits), **OPTIONS}
    if bits == 4:
        codes = torch.empty(rows, (width + 1) // 2, dtype=torch.uint8, device=memory.device)
        scales = torch.empty(rows, group_count(width), device=memory.device, dtype=torch.float32)
        if rows:
            grid = (triton.cdiv(scales.numel(), _GROUP_TILE["GROUPS"]),)
            _quantize_4[grid](memory, codes, scales, rows, **options, **_GROUP_TILE)
        return codes, scales
    codes = torch.empty(rows, width, dtype=torch.int8, device=memory.device)
    scales = torch.empty(rows, dtype=torch.float32, device=memory.device)
    if rows and width > _WIDEST_BLOCK:
        _quantize_8_long[(rows,)](memory, codes, scales, **options, **_LONG_TILE)
    elif rows:
        tile = _tile(width, _WIDEST_BLOCK)
        grid = (triton.cdiv(rows, tile["ROWS"]),)
        _quantize_8[grid](memory, codes, scales, rows, **options, **tile)
    return codes, scales


def dequantize(codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Rows `[R, width]` in `dtype`."""
    rows = codes.shape[0]
    codes, scales = codes.contiguous(), scales.contiguous()
    out = torch.empty(rows, width, dtype=dtype, device=codes.device)
    options = {**_units(width), **OPTIONS}
    if rows and codes.dtype == torch.int8:
        tile = _tile(width, _TILE)
        grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(width, tile["BLOCK"]),)
        _dequantize_8[grid](codes, scales, out, rows, **options, **tile)
    elif rows:
        grid = (triton.cdiv(scales.numel(), _GROUP_TILE["GROUPS"]),)
        _dequantize_4[grid](codes, scales, out, rows, **options, **_GROUP_TILE)
    return out


def _build(kernel: Any, types: dict[str, str], options: dict[str, float], note: str) -> Build:
    constants = {name: value for name, value in options.items() if name.isupper()}
    sizes = dict.fromkeys({"rows", "units"} & set(kernel.arg_names), "i32")
    return Build(kernel, {**types, **sizes}, constants, int(options["num_warps"]), note=note)


def builds(architecture: int) -> Iterator[Build]:
    """All that the launchers above compile; see `clara_kernels.builds`."""
    names = [TYPE_NAMES[dtype] for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    for unit in (32, 1):
        for name in [*names, "fp64"]:
            note = f"{name}, width {'divisible by 32' if unit > 1 else 'any'}"
            base, x = {"UNIT": unit}, f"*{name}"
            types_8 = {"p_codes": "*i8", "p_scales": "*fp32"}
            types_4 = {"p_codes": "*u8", "p_scales": "*fp32"}
            for width in [2**n for n in range(6, 13)]:
                tile = _tile(width, _TILE)
                at = f"{note}, to {width}" if width < _TILE else f"{note}, longer"
                yield _build(_dequantize_8, {**types_8, "p_out": x}, {**base, **tile}, at)
            yield _build(_dequantize_4, {**types_4, "p_out": x}, {**base, **_GROUP_TILE}, note)
            if name == "fp64":
                continue
            for width in [2**n for n in range(6, 15)]:
                options = {**base, **_limits(8), **_tile(width, _WIDEST_BLOCK)}
                yield _build(_quantize_8, {**types_8, "p_x": x}, options, f"{note}, to {width}")
            options = {**base, **_limits(8), **_LONG_TILE}
            yield _build(_quantize_8_long, {**types_8, "p_x": x}, options, f"{note}, longer")
            options = {**base, **_limits(4), **_GROUP_TILE}
            yield _build(_quantize_4, {**types_4, "p_x": x}, options, note)
