"""The reference on slices of rows that stay in the cache, with no float32 copy of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ragged import accumulation_dtype
from .reference import mean_distance, nan_if_incomplete, pad_row, row_weights, share

_SLICE_VALUES = 1 << 18


def forward(
    hidden: Tensor, cu_seqlens: Tensor, n_memory: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    rows, width = hidden.shape
    dtype = accumulation_dtype(hidden)
    document, weights = row_weights(cu_seqlens, n_memory, rows, dtype)
    difference = hidden.new_zeros(cu_seqlens.numel(), width, dtype=dtype)
    for part in _slices(rows, width):
        difference.index_add_(0, document[part], hidden[part].to(dtype) * weights[part, None])
    difference = nan_if_incomplete(difference[:-1], cu_seqlens, n_memory)
    return mean_distance(difference, mean), difference


def backward(
    grad: Tensor,
    difference: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    rows: int,
    dtype: torch.dtype,
    mean: bool,
) -> Tensor:
    """As `reference.backward`."""
    width = difference.shape[1]
    document, weights = row_weights(cu_seqlens, n_memory, rows, difference.dtype)
    scaled = pad_row(difference * (2 * share(difference, mean) * grad))
    grad_hidden = torch.empty(rows, width, dtype=dtype)
    for part in _slices(rows, width):
        grad_hidden[part] = scaled[document[part]] * weights[part, None]
    return grad_hidden


def _slices(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _SLICE_VALUES // width)
    for start in range(0, rows, step):
        yield slice(start, start + step)
