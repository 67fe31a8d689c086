"""Which block sizes the launchers of memory attention pick; none of them spills registers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class Blocks(NamedTuple):
    """Rows of a tile, keys of a block, and what the compiler is told."""

    m: int
    n: int
    num_warps: int
    num_stages: int


def _is_large(architecture: int) -> bool:
    """Whether it is a data-centre GPU since Hopper: more shared memory, products by warp group."""
    return 90 <= architecture < 120


def _tile_rows(mean_rows: int, most: int) -> int:
    """A tile for documents of `mean_rows` packed rows: mostly full, and one the units multiply."""
    return min(max(triton.next_power_of_2(mean_rows), 16), most)


def forward_blocks(
    dtype: torch.dtype, width: int, mean_rows: int, architecture: int, windowed: bool
) -> Blocks:
    """For a head width padded to a power of two."""
    hopper = 90 <= architecture < 100
    if dtype == torch.float32:
        roomy = width <= 32 or (width <= 128 and architecture < 120)
        return Blocks(_tile_rows(mean_rows, 32 if roomy else 16), 16, 4 if width <= 32 else 8, 1)
    m = _tile_rows(mean_rows, 128 if width <= 64 or hopper else 64)
    if width > 128:
        spills = windowed and m == 16 and 100 <= architecture < 120  # in 4 warps
        return Blocks(m, 32, 8 if m >= 64 or spills else 4, 2)
    if width <= 32:
        return Blocks(m, 32 if m in (32, 64) else 64, 4, 2)
    if m == 128:
        return Blocks(m, 32 if 100 <= architecture < 120 else 64, 8, 3)
    if width <= 64 or (m == 16 and architecture < 120):
        return Blocks(m, 64, 4, 2)
    if m <= 32:
        return Blocks(m, 64, 8, 2)
    return Blocks(m, 64 if _is_large(architecture) else 32, 4, 2)


def key_blocks(
    dtype: torch.dtype, width: int, mean_rows: int, architecture: int, windowed: bool
) -> Blocks:
    """For `key_gradients`: `m` packed rows a step, `n` keys a program."""
    large = _is_large(architecture)
    if dtype == torch.float32:
        if width > 128 and architecture < 90:
            return Blocks(16, 16, 4, 2)
        stages = 2 if windowed and width > 128 else 1
        return Blocks(16, 32 if width == 64 else 16, 8, stages)
    if width > 128:
        return Blocks(_tile_rows(mean_rows, 32), 32, 8, 1)
    if width > 64:
        m = _tile_rows(mean_rows, 32)
        return Blocks(m, 128 if large and m == 32 else 64, 8, 2)
    return Blocks(_tile_rows(mean_rows, 64 if large else 32), 128, 8, 2)


def query_blocks(
    dtype: torch.dtype, width: int, mean_rows: int, architecture: int, windowed: bool
) -> Blocks:
    """For `query_gradients`."""
    large = _is_large(architecture)
    if dtype == torch.float32:
        m = _tile_rows(mean_rows, 32 if width <= 64 else 16)
        return Blocks(m, 16 if width <= 64 or windowed else 32, 8, 1)
    if width > 128:
        return Blocks(_tile_rows(mean_rows, 64 if large else 32), 32, 8, 2)
    m = _tile_rows(mean_rows, 128 if width <= 64 or large else 64)
    if m == 64 and width > 64:
        return Blocks(m, 32, 4 if 100 <= architecture < 120 else 8, 2)
    if windowed and m == 128 and width == 64 and 100 <= architecture < 120:
        return Blocks(m, 64, 8, 1)  # two stages spill
    return Blocks(m, 64, 8, 2)
