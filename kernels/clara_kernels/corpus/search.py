"""Search of a `Corpus`: chooses the operator, filters by id, and names what was found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cosine_topk.checks import checked_k, require_mask, require_queries
from ..cosine_topk.ids import Ids
from ..cosine_topk.merge import widened
from ..cosine_topk.op import cosine_rerank, cosine_topk
from ..cosine_topk.rows import CorpusRows
from .streaming import streamed_topk


def search(
    queries: Tensor, corpus: CorpusRows, names: Ids | None, k: int, mask: Tensor | None, ids: Any
) -> tuple[Tensor, Tensor | list[list[str]]]:
    """See `Corpus.search`."""
    listed = None if ids is None else listed_rows(names, ids)
    scores, rows = search_rows(queries, corpus, k, mask, listed)
    return scores, rows if names is None else names.take(rows)


def listed_rows(names: Ids | None, ids: Any) -> Tensor:
    """The rows of the ids that a caller wants to search among."""
    if names is None:
        raise ValueError("ids must be None for a corpus without ids; a mask takes row numbers")
    return names.rows_of(ids)


def search_rows(
    queries: Tensor,
    corpus: CorpusRows,
    k: int,
    mask: Tensor | None = None,
    listed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores and row numbers `[B, min(k, N)]` on the queries' device.

    Args:
        listed: int64 on the CPU, ascending, each once: rows to search among.
    """
    require_queries(queries)
    k = checked_k(k, len(corpus))
    streams = corpus.device.type == "cpu" and queries.device.type == "cuda"
    if listed is None:
        if streams:
            return streamed_topk(queries, corpus, k, mask=mask)
        return cosine_topk(queries, corpus, k, mask=mask)
    # The search of no rows finds nothing: it is there for the checks of `cosine_topk`.
    nothing = cosine_topk(queries, corpus[:0].to(queries.device) if streams else corpus[:0], k)
    listed = listed.to(corpus.device)
    if mask is not None:
        require_mask(mask, len(corpus), corpus.rows)
        listed = listed[mask[listed]]
    width = min(k, len(corpus))
    if not len(listed):
        return widened(*nothing, width)
    # `cosine_rerank` reads the listed rows once for each query, `cosine_topk` all rows only once.
    if not streams and len(listed) * len(queries) <= len(corpus):
        return _among_few(queries, corpus, width, listed)
    allowed = torch.zeros(len(corpus), dtype=torch.bool, device=corpus.device)
    allowed[listed] = True
    if streams:  # which copies the allowed rows only
        return streamed_topk(queries, corpus, k, mask=allowed)
    return cosine_topk(queries, corpus, k, mask=allowed)


def _among_few(
    queries: Tensor, corpus: CorpusRows, width: int, listed: Tensor
) -> tuple[Tensor, Tensor]:
    count = len(queries)
    offsets = torch.arange(count + 1, device=queries.device) * len(listed)
    rows = listed.repeat(count)
    return cosine_rerank(queries, corpus, width, offsets=offsets.int(), rows=rows)
