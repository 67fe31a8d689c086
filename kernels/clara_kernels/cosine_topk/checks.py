"""Checks of arguments that all searches take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import as_int, require_offsets, require_same_device, require_shape, require_tensor

MOST_FOUND = 2048  # results for a query: what the kernels keep lists of
QUERY_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CORPUS_DTYPES = (*QUERY_DTYPES, torch.int8)


def require_queries(queries: Any) -> None:
    """TypeError or ValueError unless `queries` is `[B, D]` of a dtype that can be searched with."""
    require_tensor("queries", queries)
    if queries.dtype not in QUERY_DTYPES:
        raise TypeError(f"queries must be float32, float16 or bfloat16, got {queries.dtype}")
    require_shape("queries", queries, "[B, D]", queries.dim() == 2)


def require_mask(mask: Any, count: int, rows: Tensor | None = None) -> None:
    """TypeError or ValueError unless `mask` is bool `[count]`, on the device of `rows` if given."""
    require_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    require_shape("mask", mask, "[{}]", mask.dim() == 1 and mask.shape[0] == count, count)
    if rows is not None:
        require_same_device("mask", mask, "corpus", rows)


def checked_k(k: Any, rows: int | None = None) -> int:
    """k; TypeError or ValueError unless it is at least 1 and so many results can be kept.

    Of a corpus with fewer `rows` than k all rows are returned, and those have to be few enough.
    """
    k = as_int("k", k, 1)
    if (k if rows is None else min(k, rows)) > MOST_FOUND:
        raise ValueError(f"k must be at most {MOST_FOUND}, got {k}")
    return k


def require_candidate_offsets(
    offsets: Any, rows: Tensor | None, queries: Tensor, corpus: Tensor
) -> None:
    """TypeError or ValueError unless `offsets` split the candidates of each query.

    Args:
        rows: what is listed; None where that is the corpus.
    """
    listed, name = (corpus, "corpus") if rows is None else (rows, "rows")
    require_offsets("offsets", offsets, listed.shape[0], name)
    count = queries.shape[0] + 1
    require_shape("offsets", offsets, "[{}]", offsets.numel() == count, count)
    require_same_device("offsets", offsets, "queries", queries)
