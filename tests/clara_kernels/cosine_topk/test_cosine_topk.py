"""`cosine_topk` against NumPy in float64, on every instruction set there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracle import (
    DTYPES,
    QUERY_DTYPES,
    SIMD,
    assert_matches,
    corpus_of,
    dtypes,
    numpy_cosines,
)

from clara_kernels import cosine_rerank, cosine_topk
from clara_kernels.cosine_topk import reference


@dtypes
@pytest.mark.parametrize("query_dtype", QUERY_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("b", "n", "d", "k"),
    [(1, 1, 1, 1), (3, 70, 1, 7), (2, 1000, 17, 5), (7, 333, 127, 40), (33, 301, 1031, 11)],
)
def test_matches_numpy(topk, dtype, query_dtype, b, n, d, k):
    queries, corpus = torch.randn(b, d).to(query_dtype), corpus_of(n, d, dtype)
    assert_matches(topk(queries, corpus, k), queries, corpus, k)


@dtypes
@pytest.mark.parametrize("simd", SIMD)
def test_errors_are_far_below_the_bound(simd, dtype, monkeypatch):
    """The bound is of the worst case; rounding errors of random data mostly cancel."""
    monkeypatch.setenv("CLARA_SIMD", simd)
    queries, corpus = torch.randn(5, 2304), corpus_of(500, 2304, dtype)
    scores, rows = cosine_topk(queries, corpus, 500)
    exact = np.take_along_axis(numpy_cosines(queries, corpus), rows.numpy(), 1)
    assert np.abs(scores.numpy() - exact).max() < (2e-5 if dtype == torch.int8 else 4e-7)


@settings(deadline=None, max_examples=60)
@given(
    b=st.integers(0, 9),
    n=st.integers(0, 200),
    d=st.integers(0, 140),
    k=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    simd=st.sampled_from(SIMD),
    seed=st.integers(0, 2**31),
    masked=st.booleans(),
)
def test_any_shape_matches_numpy(b, n, d, k, dtype, simd, seed, masked):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(b, d, generator=generator)
    corpus = corpus_of(n, d, dtype, generator)
    mask = torch.rand(n, generator=generator) < 0.4 if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARA_SIMD", simd)
        found = cosine_topk(queries, corpus, k, mask=mask)
    assert_matches(found, queries, corpus, k, mask)
    by_reference = reference.cosine_topk(queries, corpus, None, mask, k)
    assert_matches(by_reference, queries, corpus, k, mask)


@pytest.mark.parametrize("simd", SIMD)
@dtypes
def test_a_score_depends_on_query_and_row_alone(simd, dtype, monkeypatch):
    """Not on the other queries, threads, the row's place, its alignment, the mask or the norms."""
    monkeypatch.setenv("CLARA_SIMD", simd)
    queries, corpus = torch.randn(70, 1300), corpus_of(1700, 1300, dtype)
    scores, rows = cosine_topk(queries, corpus, 50)
    for few in (1, 2, 3, 5, 6, 7, 16, 40):
        found = cosine_topk(queries[:few], corpus, 50)
        assert torch.equal(found[0], scores[:few])
        assert torch.equal(found[1], rows[:few])
    norms = torch.ops.clara.inverse_norms(corpus)
    found = torch.ops.clara.cosine_topk(queries, corpus, norms, None, 50)
    assert torch.equal(found[0], scores)
    shifted = torch.empty(1700, 1303, dtype=dtype)[:, 3:]
    shifted.copy_(corpus)
    assert torch.equal(cosine_topk(queries, shifted, 50)[1], rows)
    order = torch.randperm(1700)
    assert torch.equal(cosine_topk(queries, corpus[order], 50)[0], scores)
    mask = torch.zeros(1700, dtype=torch.bool)
    mask[rows[0]] = True
    found = cosine_topk(queries[:1], corpus, 50, mask=mask)
    assert torch.equal(found[0], scores[:1])
    assert torch.equal(found[1], rows[:1])
    offsets = torch.arange(0, 71 * 50, 50, dtype=torch.int32)
    found = cosine_rerank(queries, corpus, 50, offsets=offsets, rows=rows.flip(1).flatten())
    assert torch.equal(found[0], scores)
    assert torch.equal(found[1], rows)


@pytest.mark.parametrize("simd", SIMD)
def test_queries_that_need_fewer_digits_beside_others(simd, monkeypatch):
    """Those that bfloat16 or float16 can hold score the same beside those that only float32 can."""
    monkeypatch.setenv("CLARA_SIMD", simd)
    queries, corpus = torch.randn(36, 150), torch.randn(200, 150).bfloat16()
    queries[3:20] = queries[3:20].bfloat16()
    queries[20:30] = queries[20:30].half()
    scores, rows = cosine_topk(queries, corpus, 20)
    for part in (slice(3, 4), slice(3, 20), slice(20, 30), slice(1, 18)):
        found = cosine_topk(queries[part], corpus, 20)
        assert torch.equal(found[0], scores[part])
        assert torch.equal(found[1], rows[part])
    for dtype, part in ((torch.bfloat16, slice(3, 20)), (torch.float16, slice(20, 30))):
        assert torch.equal(cosine_topk(queries[part].to(dtype), corpus, 20)[0], scores[part])
    assert_matches((scores, rows), queries, corpus, 20)


@pytest.mark.parametrize("simd", SIMD)
def test_tiny_values_of_ordinary_rows(simd, monkeypatch):
    """Some instructions read numbers below the normal ones as zero, which changes no score."""
    monkeypatch.setenv("CLARA_SIMD", simd)
    corpus = torch.randn(40, 70).bfloat16()
    corpus[:, ::2] = (torch.randn(40, 35) * 1e-39).bfloat16()
    corpus[7:20] *= 2.0**-70
    queries = torch.randn(18, 70)
    queries[2:9, 1::3] *= 1e-39
    assert_matches(cosine_topk(queries, corpus, 40), queries, corpus, 40)


@pytest.mark.parametrize("simd", SIMD)
@dtypes
def test_rows_a_page_apart(simd, dtype, monkeypatch):
    """Which would crowd a cache, and are copied for many queries."""
    monkeypatch.setenv("CLARA_SIMD", simd)
    width = 8192 // dtype.itemsize
    queries, corpus = torch.randn(40, width), corpus_of(150, width, dtype)
    found = cosine_topk(queries, corpus, 30)
    assert_matches(found, queries, corpus, 30)
    apart = torch.zeros(150, width + 64, dtype=dtype)[:, :width]
    apart.copy_(corpus)
    for one, other in zip(found, cosine_topk(queries, apart, 30)):
        assert torch.equal(one, other)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    k=st.integers(1, 400),
    simd=st.sampled_from(SIMD),
)
def test_ties_go_to_the_lowest_row(seed, dtype, k, simd):
    """Rows of which many are equal: equal ones score the same bits and stand in order."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(4, 37, generator=generator)
    corpus = corpus_of(9, 37, dtype, generator)
    corpus = corpus[torch.randint(9, (350,), generator=generator)]
    mask = torch.rand(350, generator=generator) < 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARA_SIMD", simd)
        assert_matches(cosine_topk(queries, corpus, k, mask=mask), queries, corpus, k, mask)
        assert_matches(cosine_topk(queries, corpus, k), queries, corpus, k)


@dtypes
def test_equal_rows_are_ordered_by_row(topk, dtype):
    distinct = corpus_of(3, 129, dtype)
    corpus = distinct.repeat(40, 1)  # row i equals row i % 3
    _, rows = topk(distinct[1:2].float(), corpus, 60)
    assert rows[0, :40].tolist() == list(range(1, 120, 3))
    second = int(rows[0, 40])
    assert rows[0, 40:].tolist() == list(range(second, 120, 3))[:20]


def test_reference_keeps_ties_in_order_across_chunks(monkeypatch):
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 64)
    corpus = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).repeat(100, 1)
    queries = torch.tensor([[2.0, 2.0], [3.0, 0.0]])
    _, rows = reference.cosine_topk(queries, corpus, None, None, 110)
    assert rows[0].tolist() == [*range(1, 200, 2), *range(0, 20, 2)]
    assert rows[1].tolist() == [*range(0, 200, 2), *range(1, 20, 2)]


@pytest.mark.parametrize("n", [100, 2047, 2048, 2049, 9000])
@pytest.mark.parametrize("k", [1, 2047, 2048])
@pytest.mark.parametrize("simd", SIMD[-1:])
def test_many_results(simd, n, k, monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", simd)
    queries, corpus = torch.randn(2, 16), torch.randn(n, 16)
    assert_matches(cosine_topk(queries, corpus, k), queries, corpus, k)


@dtypes
def test_zero_vectors_score_zero(topk, dtype):
    corpus = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).to(dtype)
    scores, rows = topk(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), corpus, 4)
    assert rows.tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]
    assert scores.tolist() == [[1.0, 0.0, 0.0, -1.0], [0.0] * 4]


def test_fewer_rows_than_k(topk):
    queries, corpus = torch.randn(2, 5), torch.randn(3, 5)
    scores, rows = topk(queries, corpus, 10**9)
    assert [sorted(row) for row in rows.tolist()] == [[0, 1, 2]] * 2
    assert_matches((scores, rows), queries, corpus, 3)


@pytest.mark.parametrize(("b", "n", "d"), [(0, 4, 6), (3, 0, 6), (0, 0, 6), (2, 3, 0)])
def test_nothing_to_search(topk, b, n, d):
    scores, rows = topk(torch.randn(b, d), torch.randn(n, d), 2)
    assert scores.shape == rows.shape == (b, min(2, n))
    assert (scores == 0).all()


def test_a_mask_that_allows_nothing(topk):
    scores, rows = topk(torch.randn(2, 5), torch.randn(6, 5), 3, torch.zeros(6, dtype=torch.bool))
    assert rows.tolist() == [[-1] * 3] * 2
    assert scores.tolist() == [[-math.inf] * 3] * 2


@dtypes
def test_strided_rows_and_columns(topk, dtype):
    wide, tall = corpus_of(50, 60, dtype), corpus_of(20, 50, dtype)
    queries = torch.randn(6, 40)[::2, 10:30]
    for corpus in (wide[::3, 5:25], tall.T, wide[:1, :20].expand(9, 20), wide[:, ::3]):
        assert not corpus.is_contiguous()
        found = topk(queries, corpus, 4)
        expected = topk(queries.contiguous(), corpus.contiguous(), 4)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert_matches(found, queries, corpus, 4)


@pytest.mark.parametrize("dtype", QUERY_DTYPES, ids=str)
def test_rows_that_are_not_numbers_come_last(topk, dtype):
    corpus = corpus_of(200, 30, dtype)
    corpus[7, 3] = math.nan
    corpus[19, 29] = math.inf
    corpus[150] = -math.inf
    queries = torch.randn(2, 30)
    scores, rows = topk(queries, corpus, 200)
    assert rows[:, -3:].tolist() == [[7, 19, 150]] * 2
    assert scores[:, -3:].isnan().all()
    sound = torch.ones(200, dtype=torch.bool)
    sound[[7, 19, 150]] = False
    squeezed = (sound.cumsum(0) - 1)[rows[:, :197]]  # rows of the corpus as rows of its sound part
    assert_matches((scores[:, :197], squeezed), queries, corpus[sound], 197)
    _, few = topk(queries, corpus, 5)
    assert torch.equal(few, rows[:, :5])


def test_query_that_is_not_a_number_orders_by_row(topk):
    queries = torch.tensor([[math.nan, 1.0], [1.0, 0.0], [math.inf, 0.0]])
    corpus = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    scores, rows = topk(queries, corpus, 2)
    assert rows.tolist() == [[0, 1], [1, 2], [0, 1]]
    assert scores[::2].isnan().all()
    assert scores[1, 0] == 1
    _, rows = topk(queries, corpus, 3, torch.tensor([False, True, True]))
    assert rows.tolist() == [[1, 2, -1]] * 3


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 2.0**-76, 2.0**76, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_magnitudes_neither_vanish_nor_overflow(topk, dtype, scale):
    queries = (torch.tensor([[1.0, 1.0]]) * scale).to(dtype)
    ordinary = torch.randn(40, 2).to(dtype)  # beside rows of ordinary size
    corpus = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]) * scale
    corpus = torch.cat([ordinary, corpus.to(dtype)])
    scores, rows = topk(queries, corpus, 43)
    assert_matches((scores, rows), queries, corpus, 43)
    place = rows[0].tolist()
    for row, cosine in ((40, 0.5**0.5), (41, 1.0), (42, -(0.5**0.5))):
        assert scores[0, place.index(row)].item() == pytest.approx(cosine, rel=1e-6)


def test_every_float16_and_bfloat16_is_read_exactly(topk):
    """All 65,536 bit patterns, each beside a value of about its size."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)[:, None]
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        corpus = torch.cat([values, values.abs() / 3], dim=1)
        queries = torch.tensor([[1.0, 0.0], [3.0, 5.0]])
        mask = corpus.double().norm(dim=1).isfinite()
        for start in range(0, 2**16, 2048):
            part = slice(start, start + 2048)
            found = topk(queries, corpus[part], 2048, mask[part])
            assert_matches(found, queries, corpus[part].nan_to_num(1, 1, 1), 2048, mask[part])


@pytest.mark.parametrize("simd", SIMD)
def test_inverse_norms(simd, monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", simd)
    for dtype in DTYPES:
        corpus = corpus_of(300, 1203, dtype)
        corpus[5] = 0
        if dtype != torch.int8:
            corpus[7, 1200], corpus[8, 0] = math.nan, -math.inf
        if dtype in (torch.float32, torch.bfloat16):
            corpus[9], corpus[10] = 2.0**85, 2.0**-95
        found, expected = torch.ops.clara.inverse_norms(corpus), reference.inverse_norms(corpus)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)
        assert found[5] == 0
        assert (found < 0).nonzero().flatten().tolist() == (
            expected < 0
        ).nonzero().flatten().tolist()
