"""Exact top-k by cosine, s = ⟨q, c⟩ / (|q| |c|), in float64: the definition of the operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..slices import row_slices

_CHUNK_ELEMENTS = 1 << 23  # the most float64 values held of the corpus or of the scores at a time
_ORDINARY = 2.0**80  # norms up to this, and down to its inverse, are summed in float32 by kernels


def inverse_norms(corpus: Tensor) -> Tensor:
    """float32 `[N]`: 1/|c|, 0 for a zero row, NaN where a value is NaN or infinite, -1 where |c| is
    so large or so small that scores of the row need float64."""
    norms = _blockwise(corpus, lambda chunk: _norms(chunk.to(_float64(corpus))))
    found = torch.where(norms == 0, 0.0, 1 / norms)
    found[(norms > _ORDINARY) | ((norms < 1 / _ORDINARY) & (norms > 0))] = -1
    found[~norms.isfinite()] = torch.nan
    return found.float()


def cosine_topk(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    mask: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """See `clara_kernels.cosine_topk`. Reads the corpus in chunks of rows, keeping the best k."""
    count, width = corpus.shape[0], min(k, corpus.shape[0])
    best = queries.new_empty(queries.shape[0], 0, dtype=torch.float32)  # [B, ≤ k]
    best_rows = torch.empty_like(best, dtype=torch.int64)
    for part in row_slices(count, max(queries.shape), _CHUNK_ELEMENTS):
        scores = _cosines(queries, corpus[part], _part(inverse_norms, part))
        found = torch.arange(part.start, part.stop, device=corpus.device)
        found = found.expand(scores.shape[0], -1)
        if mask is not None:
            scores = scores.masked_fill(~mask[part], -torch.inf)
            found = found.masked_fill(~mask[part], -1)
        # What was kept lies in lower rows and goes in front, so that a stable sort keeps the order.
        scores, found = torch.cat([best, scores], dim=1), torch.cat([best_rows, found], dim=1)
        order = _descending(scores)[:, :width]
        best, best_rows = scores.gather(1, order), found.gather(1, order)
    return best, best_rows


def cosine_rerank(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    rows: Tensor | None,
    offsets: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """See `clara_kernels.cosine_rerank`. One question after another."""
    scores = queries.new_full((queries.shape[0], k), -torch.inf, dtype=torch.float32)
    indices = torch.full_like(scores, -1, dtype=torch.int64)
    bounds = offsets.tolist()
    for query, (begin, end) in enumerate(zip(bounds, bounds[1:])):
        if rows is None:
            own = torch.arange(begin, end, device=corpus.device)
        else:
            own = rows[begin:end].sort().values
            own = own[(own >= 0) & (own < corpus.shape[0])]
        norms = None if inverse_norms is None else inverse_norms[own]
        found = _cosines(queries[query : query + 1], corpus[own], norms)[0]
        order = _descending(found[None])[0, :k]
        scores[query, : len(order)] = found[order]
        indices[query, : len(order)] = own[order]
    return scores, indices


def _cosines(queries: Tensor, chunk: Tensor, inverse_norms: Tensor | None) -> Tensor:
    """float32 `[B, C]`; a row whose inverse norm is given as 0 scores 0."""
    queries, chunk = queries.to(_float64(queries)), chunk.to(_float64(queries))
    norms = _norms(queries)[:, None] * _norms(chunk)
    zero = norms == 0
    if inverse_norms is not None:
        zero = zero | (inverse_norms == 0)
    scores = torch.where(zero, 0.0, queries @ chunk.T / norms)
    return scores.clamp(-1, 1).float()


def _float64(tensor: Tensor) -> torch.dtype:
    # MPS has no float64, the one device on which scores are not correctly rounded.
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _norms(rows: Tensor) -> Tensor:
    return rows.square().sum(-1).sqrt()


def _descending(scores: Tensor) -> Tensor:
    """The order of each row: the highest score first, equal scores as they stand, then NaN, then
    -inf, the score of rows that a mask excludes."""
    keys = torch.where(scores.isnan(), -2.0, scores)
    return keys.sort(dim=1, descending=True, stable=True).indices


def _part(values: Tensor | None, part: slice) -> Tensor | None:
    return None if values is None else values[part]


def _blockwise(corpus: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    chunks = row_slices(corpus.shape[0], corpus.shape[1], _CHUNK_ELEMENTS)
    parts = [function(corpus[part]) for part in chunks]
    return torch.cat([corpus.new_empty(0, dtype=_float64(corpus)), *parts])
