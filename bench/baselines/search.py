"""Search by inner product as PyTorch and FAISS do it, on rows of norm 1."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

THREADS = 2  # where nobody says otherwise; FAISS' matrix products read it when it is loaded


def torch_topk(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Queries `[B, D]` and rows `[N, D]`, in one dtype throughout, by all B · N scores."""
    found = (queries @ rows.T).topk(k)
    return found.values, found.indices


def torch_int8_topk(
    queries: Tensor, rows: Tensor, inverse_norms: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The same of int8 codes, whose products are summed exactly, and norms of rows `[N]`."""
    found = (torch._int_mm(queries, rows.T) * inverse_norms).topk(k)
    return found.values, found.indices


def torch_codes_topk(
    queries: Tensor, rows: Tensor, inverse_norms: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The same of int8 codes and float32 queries: codes become float32 in each call."""
    found = ((queries @ rows.float().T) * inverse_norms).topk(k)
    return found.values, found.indices


@cache
def faiss(threads: int = THREADS) -> Any:
    """The module, or None where it is not installed."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    try:
        import faiss as module
    except ImportError:
        return None
    module.omp_set_num_threads(threads)
    return module


class FaissSearch:
    """An index of float32 rows: flat, or a byte for each value (`QT_8bit`, trained on the rows)."""

    def __init__(self, rows: Tensor, bits: int = 32) -> None:
        module, width = faiss(), rows.shape[1]
        if bits == 32:
            self.index = module.IndexFlatIP(width)
        else:
            kind = module.ScalarQuantizer.QT_8bit
            metric = module.METRIC_INNER_PRODUCT
            self.index = module.IndexScalarQuantizer(width, kind, metric)
            self.index.train(rows.numpy())
        self.index.add(rows.numpy())

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, rows = self.index.search(queries.numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(rows)
