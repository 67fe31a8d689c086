"""Ragged rows: a flat tensor and offsets, seen as a padded `[B, N]` grid.

Plain indexing for the reference implementations; every row's entries stay in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowTable(NamedTuple):
    """Where entry `[row, column]` of the grid lies in the flat tensor."""

    positions: Tensor  # int64 [B, N], 0 where nothing is
    present: Tensor  # bool [B, N]


def row_table(offsets: Tensor) -> RowTable:
    """The grid of `offsets` `[B + 1]`; N is the longest row. Reads the host once."""
    starts = offsets[:-1].long()
    lengths = offsets[1:].long() - starts
    longest = int(lengths.max()) if lengths.numel() else 0
    columns = torch.arange(longest, device=offsets.device)
    present = columns < lengths[:, None]
    return RowTable(torch.where(present, starts[:, None] + columns, 0), present)


def pad(flat: Tensor, table: RowTable | None, fill: float = 0.0) -> Tensor:
    """`[ΣN, ...]` to `[B, N, ...]` with `fill` where nothing is; as it stands without a table."""
    if table is None:
        return flat
    present = table.present.view(table.present.shape + (1,) * (flat.dim() - 1))
    return flat[table.positions].masked_fill(~present, fill)


def unpad(grid: Tensor, table: RowTable | None) -> Tensor:
    """The inverse of `pad`."""
    return grid if table is None else grid[table.present]


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, float32 otherwise."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
