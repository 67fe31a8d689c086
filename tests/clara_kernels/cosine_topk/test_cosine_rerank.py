"""`cosine_rerank` against NumPy in float64, on every instruction set there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from search_oracle import (
    SIMD,
    assert_matches,
    corpus_of,
    dtypes,
)

from clara_kernels import cosine_rerank
from clara_kernels.cosine_topk import reference


@pytest.mark.parametrize("simd", [*SIMD, "reference"])
@dtypes
def test_rerank_matches_numpy(simd, dtype, monkeypatch):
    if simd != "reference":
        monkeypatch.setenv("CLARA_SIMD", simd)
    queries, corpus = torch.randn(5, 130), corpus_of(900, 130, dtype)
    counts = [3, 0, 700, 1, 40]
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    rows = torch.cat([torch.randperm(900)[:count] for count in counts])
    norms = torch.ops.clara.inverse_norms(corpus)
    if simd == "reference":
        found = reference.cosine_rerank(queries, corpus, norms, rows, offsets, 10)
    else:
        found = cosine_rerank(queries, corpus, 10, offsets=offsets, rows=rows)
    assert found[0].shape == found[1].shape == (5, 10)
    for i, count in enumerate(counts):
        mask = torch.zeros(900, dtype=torch.bool)
        mask[rows[offsets[i] : offsets[i + 1]]] = True
        padded = [each[i : i + 1] for each in found]
        assert (padded[1][0, :count] >= 0).all()
        assert_matches(padded, queries[i : i + 1], corpus, 10, mask)


def test_rerank_without_a_list_takes_the_rows_in_order():
    queries, corpus = torch.randn(3, 20), torch.randn(12, 20)
    offsets = torch.tensor([0, 5, 5, 12], dtype=torch.int32)
    listed = cosine_rerank(queries, corpus, 4, offsets=offsets, rows=torch.arange(12))
    found = cosine_rerank(queries, corpus, 4, offsets=offsets)
    assert torch.equal(found[0], listed[0])
    assert torch.equal(found[1], listed[1])
    assert found[1][1].tolist() == [-1] * 4
    assert set(found[1][0].tolist()) <= set(range(5))


def test_rerank_skips_numbers_that_are_no_row():
    queries, corpus = torch.randn(1, 20), torch.randn(6, 20)
    rows = torch.tensor([-1, 3, 6, 2**62, 5, -(2**62)])
    offsets = torch.tensor([0, 6], dtype=torch.int32)
    _, found = cosine_rerank(queries, corpus, 4, offsets=offsets, rows=rows)
    assert sorted(found[0].tolist()) == [-1, -1, 3, 5]
