"""Exact top-k by cosine, s = ⟨q, c⟩ / (|q| |c|): what `cosine_topk` means on every device."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 23  # the most float64 values held of the corpus or of the scores at a time


def cosine_topk_reference(queries: Tensor, corpus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `clara_kernels.cosine_topk`. Reads the corpus in chunks of rows, keeping the best k."""
    # MPS has no float64, the one device on which scores are not correctly rounded.
    dtype = torch.float32 if queries.device.type == "mps" else torch.float64
    queries = queries.to(dtype)
    query_norms = _norms(queries)[:, None]  # [B, 1]
    width = min(k, corpus.shape[0])
    rows = max(1, _CHUNK_ELEMENTS // max(1, *queries.shape))

    best = queries.new_empty(queries.shape[0], 0, dtype=torch.float32)  # [B, ≤ k]
    best_rows = torch.empty_like(best, dtype=torch.int64)
    for start in range(0, corpus.shape[0], rows):
        chunk = corpus[start : start + rows].to(dtype)  # [C, D]
        norms = query_norms * _norms(chunk)  # [B, C]
        scores = torch.where(norms == 0, 0.0, queries @ chunk.T / norms).float()
        found = torch.arange(start, start + chunk.shape[0], device=corpus.device)
        # What was kept lies in lower rows and goes in front, so that a stable sort keeps the order.
        scores = torch.cat([best, scores], dim=1)
        found = torch.cat([best_rows, found.expand(scores.shape[0], -1)], dim=1)
        order = _descending(scores)[:, :width]
        best, best_rows = scores.gather(1, order), found.gather(1, order)
    return best, best_rows


def _norms(rows: Tensor) -> Tensor:
    return rows.square().sum(-1).sqrt()


def _descending(scores: Tensor) -> Tensor:
    """Order of each row, the highest first, equal scores as they stand, NaN after everything."""
    keys = torch.where(scores.isnan(), -torch.inf, scores)
    return keys.sort(dim=1, descending=True, stable=True).indices
