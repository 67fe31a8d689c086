"""Find the nearest documents of one version, among all of them or some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara.index.contents import Contents
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.filters import Filter, as_filter
from clara_kernels import Corpus, cosine_rerank, cosine_topk


def chosen_rows(
    contents: Contents, filter_text: str | None, document_ids: Sequence[str] | None
) -> Tensor | None:
    """The rows to search among, int64, ascending; None for all.

    Args:
        filter_text: see `clara.index.filters`.
        document_ids: with a filter, rows have to be of these documents, too.

    Raises:
        MemoryIndexError: a filter that cannot be read, or a document that is not in the index.
    """
    rows: set[int] | None = None
    if document_ids is not None:
        rows = set(contents.rows_of_all(document_ids))
    if filter_text is not None:
        snapshot = contents.snapshot
        found = _filtered(contents, as_filter(snapshot.header, filter_text, snapshot.path))
        rows = found if rows is None else rows & found
    return None if rows is None else torch.tensor(sorted(rows), dtype=torch.int64)


def nearest(queries: Tensor, corpus: Corpus, k: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and rows `[B, min(k, n)]` of the nearest among n rows; the same as of them alone.

    Args:
        rows: of `chosen_rows`.
    """
    if rows is None:
        return cosine_topk(queries, corpus, k)
    k = min(k, len(rows))
    if not k:
        return torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    # One reads the listed rows once for each query, the other all rows only once.
    if len(rows) * len(queries) <= len(corpus):
        offsets = torch.arange(len(queries) + 1, dtype=torch.int32) * len(rows)
        return cosine_rerank(queries, corpus, k, offsets=offsets, rows=rows.repeat(len(queries)))
    mask = torch.zeros(len(corpus), dtype=torch.bool)
    mask[rows] = True
    return cosine_topk(queries, corpus, k, mask=mask)


def _filtered(contents: Contents, wanted: Filter) -> set[int]:
    """The rows that a filter keeps."""
    snapshot = contents.snapshot
    if contents.has_duplicates:
        raise MemoryIndexError(
            f"{snapshot.path}: ids are stored twice, so a filter could be of a row that is not "
            f"read; run 'clara index upgrade --model MODEL {snapshot.path}'"
        )
    if wanted.of_details:
        contents.check_details()
    try:
        with failures_in(snapshot.path, "reading"):
            table = snapshot.dataset.to_table(columns=["id"], filter=wanted.sql)
    except MemoryIndexError as error:
        reason = str(error).removeprefix(f"{snapshot.path}: reading failed: ")
        raise wanted.failed(snapshot.path, snapshot.header, reason) from error
    return {contents.known_row(name) for name in table["id"].to_pylist()}
