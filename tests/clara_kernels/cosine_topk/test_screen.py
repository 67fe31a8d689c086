"""The level that screens rows by rounded products finds what the one without finds, to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from search_oracle import SIMD, assert_matches, corpus_of

from clara_kernels import cosine_topk

pytestmark = pytest.mark.skipif("avx512bf16" not in SIMD, reason="needs AVX512-BF16 of AMD")

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def same_as_without(monkeypatch, queries, corpus, k, mask=None):
    found = []
    for simd in ("avx512vnni", "avx512bf16"):
        monkeypatch.setenv("CLARA_SIMD", simd)
        found.append(cosine_topk(queries, corpus, k, mask=mask))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return found[1]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("batch", [12, 33, 70, 150])
@pytest.mark.parametrize("width", [33, 1300])
def test_many_rows(monkeypatch, dtype, batch, width):
    torch.manual_seed(0)
    queries, corpus = torch.randn(batch, width), corpus_of(1500, width, dtype)
    found = same_as_without(monkeypatch, queries, corpus, 9)
    assert_matches(found, queries, corpus, 9)
    shifted = torch.empty(1500, width + 3, dtype=dtype)[:, 3:]
    shifted.copy_(corpus)
    mask = torch.rand(1500) < 0.6
    same_as_without(monkeypatch, queries, shifted, 9, mask)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-3, 1e-2])
def test_rows_nearly_as_good_as_the_best(monkeypatch, dtype, spread):
    """Which rounding puts in another order, and of which too many to keep may be the best."""
    torch.manual_seed(0)
    centre = torch.randn(1, 200)
    corpus = (centre + spread * torch.randn(3000, 200)).to(dtype)
    queries = centre + 0.1 * torch.randn(40, 200)
    same_as_without(monkeypatch, queries, corpus, 10)


def test_ever_better_rows(monkeypatch):
    torch.manual_seed(0)
    queries, noise = torch.randn(1, 64), torch.randn(4000, 64)
    corpus = (torch.linspace(0, 3, 4000)[:, None] * queries + noise).bfloat16()
    same_as_without(monkeypatch, queries + 0.1 * torch.randn(40, 64), corpus, 20)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_and_queries_without_ordinary_norms(monkeypatch, dtype):
    torch.manual_seed(0)
    queries, corpus = torch.randn(36, 70), torch.randn(2000, 70).to(dtype)
    queries[1], queries[2, 5], queries[3, 0] = 0, math.nan, math.inf
    corpus[::5], corpus[11, 3], corpus[12, 69] = 0, math.nan, -math.inf
    if dtype != torch.float16:
        corpus[20:30] *= 2.0**90
        corpus[30:40] *= 2.0**-90
    same_as_without(monkeypatch, queries, corpus, 15)
