"""The reference on slices of rows that stay in the cache, with no float32 copy of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype
from ..slices import row_slices
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
    for part in row_slices(rows, width, _SLICE_VALUES):
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
    for part in row_slices(rows, width, _SLICE_VALUES):
        grad_hidden[part] = scaled[document[part]] * weights[part, None]
    return grad_hidden
