"""Exact search of rows by int8 codes of them, which are half of their bytes or fewer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..build import native
from ..checks import require_shape
from ..cosine_topk.checks import MOST_FOUND, checked_k, require_mask, require_queries
from ..cosine_topk.merge import merge_topk
from ..cosine_topk.op import cosine_rerank, cosine_topk
from ..cosine_topk.rows import CorpusRows
from .codes import RowCodes

_COARSE = 1024  # rows with the largest errors, which are scored in any case
_FEW_ROWS = 2 * MOST_FOUND  # are scored at once
_TOGETHER = 32  # queries that are screened at a time, each with some 200 KB
_MANY = 8  # queries for which it takes longer to order candidates than to score all rows
_WITHOUT_PROOF = 4  # candidates for each row that is wanted
_LEAST_WITHOUT_PROOF = 256
_LONGEST_PAUSE = 64  # searches
_SAFETY = 1e-6


class _Query(NamedTuple):
    """What is known of queries before rows are read, float64 `[B]`.

    Attributes:
        base: ⟨u, m⟩, which every score contains.
        along, across: lengths of the parts of u along the center and across it.
        rounding: the most that a score moves because of rounded queries and sums in float32.
    """

    base: Tensor
    along: Tensor
    across: Tensor
    rounding: Tensor


@dataclass
class Found:
    """Results of a search.

    Attributes:
        scores: float32 `[B, k]`.
        rows: int64 `[B, k]`.
        proven: bool `[B]`, where these are the best of all rows for certain.
    """

    scores: Tensor
    rows: Tensor
    proven: Tensor


class CodedCorpus:
    """Rows with int8 codes of them. A search reads all codes and few of the rows.

    The best rows by their codes are candidates, which are scored as `cosine_topk` scores them. If
    the error of the codes cannot have hidden a better row, that is the answer; otherwise all rows
    are scored. So the answer is that of `cosine_topk`, bit for bit, whatever the rows are; how fast
    it is found depends on them. After a search in vain the next ones score all rows at once, twice
    as many each time. So do all searches of many queries but the first: codes save reading, but
    for many queries the products take longer.

    Nothing is copied: rows and codes may lie in a mapped file. Where nothing was compiled (see
    `build_info`), all rows are scored.

    Args:
        exact: the rows, float32, float16 or bfloat16, on the CPU, with their inverse norms.
        coded: of `encode_rows`.
        center: float32 `[D]`, as `encode_rows` got it.
        before_reading: is told which rows of `exact` are read next, int64, or None for all.

    Raises:
        ValueError: shapes do not match.
    """

    def __init__(
        self,
        exact: CorpusRows,
        coded: RowCodes,
        center: Tensor,
        before_reading: Callable[[Tensor | None], None] | None = None,
    ) -> None:
        count, width = len(exact), exact.width
        require_shape(
            "codes", coded.codes, "{}", coded.codes.shape == (count, width), [count, width]
        )
        require_shape("center", center, "[{}]", center.shape == (width,), width)
        self.exact = exact
        self._coded = coded
        self._center = center.double()
        self._before_reading = before_reading
        order = coded.errors.topk(min(_COARSE + 1, count)).indices
        self._coarse = order[:_COARSE].sort().values
        self._error = float(coded.errors[order[-1]]) if count > _COARSE else 0.0
        self._lock = threading.Lock()
        self._pause = self._paused = 0
        self._had_many = False

    def __len__(self) -> int:
        return len(self.exact)

    def search(
        self, queries: Tensor, k: int, *, mask: Tensor | None = None, approximate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Find the k rows with the highest cosine to each query; see `cosine_topk`.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16, on the CPU.
            k: 1 to 2,048; a larger k is accepted if there are at most 2,048 rows.
            mask: bool `[N]`; only rows where it is True are found.
            approximate: take the best of `max(4k, 256)` candidates, but no more than 2,048, without
                a proof. Their scores are right, but a better row may be missing.

        Returns:
            Scores and rows `[B, min(k, N)]`, as `cosine_topk` returns them.

        Raises:
            TypeError, ValueError: those of `cosine_topk`.
        """
        require_queries(queries)
        k = checked_k(k, len(self))
        if mask is not None:
            require_mask(mask, len(self), self.exact.rows)
        require_shape(
            "queries", queries, "[B, {}]", queries.shape[1] == self.exact.width, self.exact.width
        )
        queries = queries.detach()
        small = len(self) <= max(_FEW_ROWS, 2 * k)
        if native is None or small or not len(queries):
            return self._all(queries, k, mask)
        if not approximate and self._is_in_vain(len(queries)):
            return self._all(queries, k, mask)
        return (self._likely if approximate else self._proven)(queries, k, mask)

    def among(self, queries: Tensor, k: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The k best of the listed rows for each query, int64 `[C]`; see `cosine_rerank`."""
        listed = rows.expand(len(queries), -1)
        return self._scored(queries, listed, torch.ones_like(listed, dtype=torch.bool), k)

    def _likely(self, queries: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best of some candidates."""
        listed = min(max(_WITHOUT_PROOF * k, _LEAST_WITHOUT_PROOF), MOST_FOUND)
        scores, found = [], []
        for some in queries.split(_TOGETHER):
            _, rows = self._nearest(some, mask, listed)
            best = self._scored(some, rows, rows >= 0, k)
            scores.append(best[0])
            found.append(best[1])
        return torch.cat(scores), torch.cat(found)

    def _proven(self, queries: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best for certain. Without a proof for one, all rows are scored for the rest."""
        scores = torch.empty(len(queries), k)
        found = torch.empty(len(queries), k, dtype=torch.int64)
        left = torch.ones(len(queries), dtype=torch.bool)
        for start in range(0, len(queries), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            some = self._screened(queries[part], k, mask)
            scores[part], found[part], left[part] = some.scores, some.rows, ~some.proven
            if left[part].any():
                break
        in_vain = bool(left.any())
        self._note(not in_vain)
        if in_vain:
            scores[left], found[left] = self._all(queries[left], k, mask)
        return scores, found

    def _screened(self, queries: Tensor, k: int, mask: Tensor | None) -> Found:
        """The best by exact scores of those that may be the best by their codes."""
        known = self._known(queries)
        values, rows = self._nearest(queries, mask, MOST_FOUND)
        bound = known.along * self._coded.along + known.rounding  # beside a row's own error
        # What a row that is not listed may score at most; it is not a coarse one.
        unlisted = known.base + 2 * values[:, -1].double() + known.across * self._error + bound
        unlisted[rows[:, -1] < 0] = -torch.inf
        coarse = self._coarse if mask is None else self._coarse[mask[self._coarse]]
        first = torch.cat([rows[:, :k], coarse.expand(len(queries), -1)], 1)
        scores, best = self._scored(queries, first, _first_time(first), k)
        errors = self._coded.errors[rows.clamp(min=0)].double()
        reached = known.base[:, None] + 2 * values.double() + bound[:, None]
        reached += known.across[:, None] * errors
        left = (reached >= scores[:, -1:]) & (rows >= 0) & ~torch.isin(rows, coarse)
        left[:, :k] = False
        more = self._scored(queries, rows, left, k)
        scores, best = merge_topk([scores, more[0]], [best, more[1]], k)
        proven = (unlisted < scores[:, -1]) | unlisted.isneginf()
        return Found(scores, best, proven)

    def _nearest(self, queries: Tensor, mask: Tensor | None, listed: int) -> tuple[Tensor, Tensor]:
        """Products with codes, halved, and rows; the highest."""
        found: tuple[Tensor, Tensor] = torch.ops.clara.cosine_topk(
            queries, self._coded.codes, self._coded.factors, mask, listed
        )
        return found

    def _scored(
        self, queries: Tensor, rows: Tensor, chosen: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """The k best by exact scores of the chosen entries `[B, C]` of `rows` for each query."""
        counts = chosen.sum(1)
        offsets = torch.zeros(len(queries) + 1, dtype=torch.int32)
        offsets[1:] = counts.cumsum(0)
        listed = rows[chosen]
        if self._before_reading is not None and len(listed):
            self._before_reading(listed)
        return cosine_rerank(queries, self.exact, k, offsets=offsets, rows=listed)

    def _all(self, queries: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._before_reading is not None and len(queries):
            self._before_reading(None)
        return cosine_topk(queries, self.exact, k, mask=mask)

    def _known(self, queries: Tensor) -> _Query:
        width = queries.shape[1]
        wide = queries.double()
        largest = wide.abs().amax(1, keepdim=True)
        wide = wide / torch.where(largest > 0, largest, 1.0)
        norms = wide.norm(dim=1)
        units = wide / norms.clamp(min=1.0)[:, None]  # one value is 1, unless all are 0
        base = units @ self._center
        length = self._center.norm()
        along = base / length if length > 0 else torch.zeros_like(base)
        across = (norms > 0) * (1 - along.square()).clamp(min=0).sqrt() + _SAFETY
        of_sums = (width / 512 + 528) * 2.0**-24
        of_query = width**0.5 / (65278 * norms.clamp(min=1.0))
        rounding = self._coded.reach * (of_query * 1.01 + 2 * of_sums) + of_sums + _SAFETY
        return _Query(base, along.abs() + _SAFETY, across, rounding)

    def _is_in_vain(self, count: int) -> bool:
        """Whether to score all rows at once for so many queries."""
        with self._lock:
            if count >= _MANY:
                # A single batch may cost less than reading, and checking, all rows.
                had_many, self._had_many = self._had_many, True
                if had_many:
                    return True
            self._paused -= 1
            return self._paused >= 0

    def _note(self, proven: bool) -> None:
        with self._lock:
            self._pause = 0 if proven else min(max(1, 2 * self._pause), _LONGEST_PAUSE)
            self._paused = self._pause


def _first_time(rows: Tensor) -> Tensor:
    """Where a row number `[B, C]` is not negative and stands in its line for the first time."""
    ordered = rows.sort(dim=1, stable=True)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[:, 1:] = ordered.values[:, 1:] != ordered.values[:, :-1]
    return torch.zeros_like(first).scatter(1, ordered.indices, first) & (rows >= 0)
