"""Search in two stages: a cheap stage proposes rows, exact cosines choose among them."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor

from ..checks import is_number
from ..corpus.corpus import Corpus
from ..corpus.search import search_rows
from ..cosine_topk.checks import checked_k
from ..cosine_topk.op import cosine_rerank
from ..cosine_topk.rows import require_corpus
from .first_stage import FirstStage, require_stage_queries

_CANDIDATES = 1 << 24  # the most that one call rescores; their row numbers take 128 MiB


class TwoStageSearch:
    """Search a first stage's candidates by exact cosine to the full rows.

    Of N rows, k · oversampling per query are read. Scores are exact. A row is missed if the first
    stage did not propose it; `recall` measures how often that happens with your corpus and queries.

    Args:
        first: a `FirstStage`, such as `MeanPooled`, `RandomProjection` or `Faiss`, made from
            `corpus`.
        corpus: the full rows; they may be in a mapped file. Rescoring happens on its device.
        oversampling: candidates for each row that is asked for, at least 1.

    Raises:
        TypeError: an argument is not of the stated type.
        ValueError: oversampling is below 1 or not finite, or first was made for another width or
            number of rows.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, MeanPooled, TwoStageSearch
        >>> corpus = Corpus(torch.randn(50, 4 * 16))
        >>> search = TwoStageSearch(MeanPooled(corpus, 4), corpus, oversampling=8)
        >>> scores, rows = search.search(corpus.rows[[7, 30]], 1)
        >>> rows.flatten().tolist()
        [7, 30]
        >>> 0 <= search.recall(corpus.rows[:5], 3) <= 1
        True
    """

    def __init__(self, first: FirstStage, corpus: Corpus, *, oversampling: float = 8) -> None:
        require_corpus("corpus", corpus)
        if not callable(getattr(first, "candidates", None)):
            raise TypeError(f"first must have a method candidates, got {type(first).__name__}")
        if not is_number(oversampling):
            raise TypeError(f"oversampling must be a number, got {type(oversampling).__name__}")
        if not 1 <= oversampling < math.inf:
            raise ValueError(f"oversampling must be at least 1 and finite, got {oversampling}")
        width = getattr(first, "width", corpus.width)
        if width != corpus.width:
            raise ValueError(f"first must be for rows of width {corpus.width}, got {width}")
        if isinstance(first, Sized) and len(first) != len(corpus):
            raise ValueError(f"first must be for {len(corpus)} rows, got one for {len(first)}")
        self.first, self.corpus, self.oversampling = first, corpus, oversampling

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the best k among the first stage's candidates.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16, on the first stage's device.
            k: at least 1. `MeanPooled` and `RandomProjection` propose up to 2,048 rows. If the
                corpus has more rows, k · oversampling must not exceed 2,048.

        Returns:
            Scores `[B, min(k, N)]`, float32, descending, the same as `cosine_topk` gives the rows,
            and row numbers, int64, equal scores by the lowest row; -inf and -1 where there were
            fewer candidates. On the queries' device.

        Raises:
            TypeError: an argument is not of the stated type.
            ValueError: shapes or devices do not match, k is out of range, or the candidates are
                not int64 `[B, count]`.
        """
        require_stage_queries(queries, self.corpus.width)
        k = checked_k(k, len(self.corpus))
        width = min(k, len(self.corpus))
        if not width:
            nothing = queries.new_empty(len(queries), 0, dtype=torch.float32)
            return nothing, nothing.long()
        count = min(len(self.corpus), math.ceil(k * self.oversampling))
        most = getattr(self.first, "most_candidates", count)
        if count > most:
            accepted = f"at most {int(most / self.oversampling)} where first proposes up to {most}"
            raise ValueError(f"k must be {accepted} rows, {self.oversampling:g} for each, got {k}")
        parts = [
            self._rescored(part, count, width)
            for part in queries.split(max(1, _CANDIDATES // count))
        ]
        scores, rows = zip(*parts)
        return torch.cat(scores), torch.cat(rows)

    def recall(self, queries: Tensor, k: int) -> float:
        """Measure which share of the exact top k `search` finds, by searching all rows.

        Args:
            queries: `[B, D]` as for `search`, B at least 1.
            k: as for `search`.

        Returns:
            Between 0 and 1: rows that both find, of B · min(k, N). A row that ties with the last
            of the exact ones is not counted as one of them.

        Raises:
            TypeError, ValueError: as `search`; or there are no queries or no rows.
        """
        rows = self.search(queries, k)[1]
        if not rows.numel():
            raise ValueError("recall needs at least one query and one row, got none")
        exact = self._exact(queries, k)
        base = torch.arange(len(rows), device=rows.device)[:, None] * len(self.corpus)
        found = torch.where(rows < 0, -1, rows + base)
        return float(torch.isin(exact + base, found).double().mean())

    def _exact(self, queries: Tensor, k: int) -> Tensor:
        place = self.corpus.device
        return search_rows(queries.to(place), self.corpus, k)[1].to(queries.device)

    def _rescored(self, queries: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
        proposed = self.first.candidates(queries, count)
        _require_candidates(proposed, len(queries), count)
        place = self.corpus.device
        # A row that is proposed twice is found once.
        proposed = proposed.to(place).sort(dim=1).values
        repeated = proposed[:, 1:] == proposed[:, :-1]
        proposed[:, 1:].masked_fill_(repeated, -1)
        offsets = torch.arange(len(queries) + 1, device=place) * count
        here = queries.to(place)
        scores, rows = cosine_rerank(
            here, self.corpus, width, offsets=offsets.int(), rows=proposed.flatten()
        )
        return scores.to(queries.device), rows.to(queries.device)


def _require_candidates(rows: Any, queries: int, count: int) -> None:
    shape = (queries, count)
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.shape != shape:
        got = (
            f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        )
        raise ValueError(f"candidates of first must be int64 {list(shape)}, got {got}")
