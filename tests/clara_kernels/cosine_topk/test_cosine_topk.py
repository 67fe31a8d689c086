"""`cosine_topk` and `cosine_rerank` against NumPy in float64, on every instruction set there is."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracle import DTYPES, QUERY_DTYPES, assert_matches, corpus_of, numpy_cosines

from clara_kernels import build_info, cosine_rerank, cosine_topk
from clara_kernels.cosine_topk import compiled, reference

SIMD = build_info()["simd_available"]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=[*SIMD, "reference"])
def topk(request, monkeypatch):
    """`cosine_topk` by one instruction set, or by the PyTorch reference."""
    if request.param == "reference":
        return lambda q, c, k, mask=None: reference.cosine_topk(q, c, None, mask, k)
    monkeypatch.setenv("CLARA_SIMD", request.param)
    return lambda q, c, k, mask=None: cosine_topk(q, c, k, mask=mask)


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


@pytest.mark.parametrize("simd", SIMD)
@dtypes
def test_threads_change_nothing(simd, dtype, monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", simd)
    for b, n, d in [(3, 4003, 300), (200, 30, 900)]:  # shared by rows, by queries
        queries, corpus = torch.randn(b, d), corpus_of(n, d, dtype)
        corpus[1::2] = corpus[::2][: len(corpus[1::2])]  # ties within and between threads' rows
        before = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 4, 7):
                torch.set_num_threads(count)
                results.append(cosine_topk(queries, corpus, 50))
        finally:
            torch.set_num_threads(before)
        for scores, rows in results[1:]:
            assert torch.equal(scores, results[0][0])
            assert torch.equal(rows, results[0][1])


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


def test_parallel_calls_agree():
    corpus = torch.randn(3000, 200)
    queries = [torch.randn(9, 200) for _ in range(6)]
    expected = [cosine_topk(each, corpus, 30) for each in queries]
    found = [None] * 6

    def search(i):
        for _ in range(5):
            found[i] = cosine_topk(queries[i], corpus, 30)

    threads = [threading.Thread(target=search, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


FORK = """
import os, threading, torch
from clara_kernels import cosine_topk
torch.set_num_threads(4)
queries, corpus = torch.randn(8, 256), torch.randn(20000, 256)
expected = cosine_topk(queries, corpus, 9)
running = threading.Thread(target=lambda: [cosine_topk(queries, corpus, 9) for _ in range(20)])
running.start()
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        found = cosine_topk(queries, corpus, 9)
        os._exit(0 if torch.equal(found[1], expected[1]) else 1)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
running.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_search():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=300)


@pytest.mark.skipif(not build_info()["compiled"], reason="needs the compiled module")
def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", "avx1024")
    with pytest.raises(ValueError, match=r"CLARA_SIMD must be one of .*, got 'avx1024'"):
        cosine_topk(torch.ones(1, 2), torch.ones(1, 2), 1)


def test_needs_no_gradient():
    queries = torch.randn(2, 4, requires_grad=True)
    scores, rows = cosine_topk(queries, torch.randn(5, 4, requires_grad=True), 2)
    assert not scores.requires_grad
    assert not rows.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": [[1.0]]}, TypeError, r"queries must be a torch\.Tensor, got list"),
        ({"corpus": None}, TypeError, r"corpus must be a torch\.Tensor, got NoneType"),
        (
            {"queries": torch.ones(2, 4, dtype=torch.float64)},
            TypeError,
            r"queries must be float32, float16 or bfloat16, got torch\.float64",
        ),
        (
            {"corpus": torch.ones(3, 4, dtype=torch.uint8)},
            TypeError,
            r"corpus must be float32, float16, bfloat16 or int8, got torch\.uint8",
        ),
        ({"queries": torch.ones(4)}, ValueError, r"queries must have shape \[B, D\], got \[4\]"),
        ({"corpus": torch.ones(3, 4, 1)}, ValueError, r"corpus must have shape \[N, 4\]"),
        ({"corpus": torch.ones(3, 5)}, ValueError, r"corpus must have shape \[N, 4\].*\[3, 5\]"),
        ({"corpus": torch.ones(3, 4, device="meta")}, ValueError, "corpus must be on the device"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": -3}, ValueError, "k must be at least 1, got -3"),
        (
            {"k": 2049, "corpus": torch.ones(2049, 4)},
            ValueError,
            "k must be at most 2048, got 2049",
        ),
        ({"k": 2.0}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"mask": [True] * 3}, TypeError, r"mask must be a torch\.Tensor, got list"),
        ({"mask": torch.ones(3)}, TypeError, r"mask must be bool, got torch\.float32"),
        (
            {"mask": torch.ones(2, dtype=torch.bool)},
            ValueError,
            r"mask must have shape \[3\], got \[2\]",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"queries": torch.ones(2, 4), "corpus": torch.ones(3, 4), "k": 2} | change
    with pytest.raises(error, match=message):
        cosine_topk(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": [0, 1, 2]}, TypeError, r"rows must be a torch\.Tensor, got list"),
        ({"rows": torch.zeros(3)}, TypeError, r"rows must be int64, got torch\.float32"),
        (
            {"rows": torch.zeros(3, 1).long()},
            ValueError,
            r"rows must have shape \[C\], got \[3, 1\]",
        ),
        (
            {"offsets": torch.tensor([0, 2, 3])},
            TypeError,
            r"offsets must be int32, got torch\.int64",
        ),
        ({"offsets": torch.tensor([0, 3]).int()}, ValueError, r"offsets must have shape \[3\]"),
        ({"offsets": torch.tensor([0, 2, 4]).int()}, ValueError, "offsets must end at 3, the rows"),
        ({"offsets": torch.tensor([0, 5, 3]).int()}, ValueError, "offsets must not decrease"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2049}, ValueError, "k must be at most 2048, got 2049"),
    ],
)
def test_bad_arguments_of_rerank_are_named(change, error, message):
    arguments = {"queries": torch.ones(2, 4), "corpus": torch.ones(3, 4), "k": 2}
    arguments |= {"offsets": torch.tensor([0, 2, 3]).int(), "rows": torch.arange(3)} | change
    with pytest.raises(error, match=message):
        cosine_rerank(**arguments)


@dtypes
def test_operators_are_registered_soundly(dtype):
    queries, corpus = torch.randn(3, 8), corpus_of(11, 8, dtype)
    norms, mask = torch.ops.clara.inverse_norms(corpus), torch.rand(11) < 0.5
    torch.library.opcheck(torch.ops.clara.inverse_norms, (corpus,))
    for k in (1, 20):
        torch.library.opcheck(torch.ops.clara.cosine_topk, (queries, corpus, None, None, k))
        torch.library.opcheck(torch.ops.clara.cosine_topk, (queries, corpus, norms, mask, k))
        offsets = torch.tensor([0, 4, 4, 11], dtype=torch.int32)
        for rows in (None, torch.arange(11)):
            arguments = (queries, corpus, norms, rows, offsets, k)
            torch.library.opcheck(torch.ops.clara.cosine_rerank, arguments)


def test_compiles_without_a_graph_break_for_many_k():
    compiled = torch.compile(cosine_topk, fullgraph=True, backend="eager")
    queries, corpus = torch.randn(3, 8), torch.randn(30, 8)
    for k in range(1, 14):
        found, expected = compiled(queries, corpus, k), cosine_topk(queries, corpus, k)
        assert torch.equal(found[1], expected[1])


def test_meta_tensors_have_the_right_shape_and_no_data():
    queries, corpus = torch.empty(3, 8, device="meta"), torch.empty(5, 8, device="meta")
    scores, rows = cosine_topk(queries, corpus, 9)
    assert scores.shape == rows.shape == (3, 5)
    assert scores.is_meta
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    assert cosine_rerank(queries, corpus, 9, offsets=offsets)[1].shape == (3, 9)


@pytest.mark.skipif(not build_info()["compiled"], reason="needs the compiled module")
def test_operators_refuse_what_they_could_not_read():
    queries, corpus = torch.ones(2, 4), torch.ones(3, 4)
    search, norms = torch.ops.clara.cosine_topk, torch.ones(3)
    offsets = torch.tensor([0, 1, 3], dtype=torch.int32)
    for wrong in (norms[:2], norms.double(), norms[None]):
        with pytest.raises(ValueError, match=r"inverse_norms must be torch.float32 \[3\] on cpu"):
            search(queries, corpus, wrong, None, 1)
        with pytest.raises(ValueError, match="inverse_norms must be"):
            torch.ops.clara.cosine_rerank(queries, corpus, wrong, None, offsets, 1)
    with pytest.raises(ValueError, match=r"mask must be torch.bool \[3\] on cpu"):
        search(queries, corpus, norms, norms, 1)
    listed = torch.arange(2)
    for rows, wrong, message in (
        (listed, offsets, "offsets must end at 2, the rows of rows, got 3"),
        (None, torch.tensor([0, 4, 3], dtype=torch.int32), "must not decrease"),
        (None, offsets[1:], "offsets must"),
        (listed.int(), torch.tensor([0, 1, 2], dtype=torch.int32), "rows must be int64"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.clara.cosine_rerank(queries, corpus, None, rows, wrong, 1)


if build_info()["compiled"]:
    from clara_kernels import _C

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"type": "float64"}, "type must be 'float32', .* or 'int8', got 'float64'"),
            ({"count": -1}, "count must not be negative, got -1"),
            ({"columns": -2}, "columns must not be negative, got -2"),
            ({"stride": -4}, "stride must not be negative, got -4"),
            ({"address": 0}, "address must not be null for 2 rows"),
        ],
    )
    def test_compiled_rows_check_their_arguments(change, message):
        rows = torch.ones(2, 4)
        arguments = {"address": rows.data_ptr(), "type": "float32", "count": 2}
        arguments |= {"columns": 4, "stride": 4}
        _C.Rows(**arguments)
        with pytest.raises(ValueError, match=message):
            _C.Rows(**arguments | change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 0}, "k must be at least 1, got 0"),
            ({"threads": 0}, "threads must be at least 1, got 0"),
            ({"scores": 0}, "scores must not be a null address"),
            ({"indices": 0}, "indices must not be a null address"),
            ({"columns": 3}, "corpus must have the queries' 4 columns, got 3"),
            ({"type": "int8"}, "queries must not be int8"),
        ],
    )
    def test_compiled_search_checks_its_arguments(change, message):
        rows = torch.ones(2, 4)
        scores, indices = torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int64)
        kind, columns = change.pop("type", "float32"), change.pop("columns", 4)
        shared = {"k": 1, "threads": 1, "scores": scores.data_ptr(), "inverse_norms": 0}
        shared |= {"indices": indices.data_ptr()} | change
        queries = _C.Rows(rows.data_ptr(), kind, 2, 4, 4)
        corpus = _C.Rows(rows.data_ptr(), "float32", 2, columns, 4)
        with pytest.raises(ValueError, match=message):
            _C.cosine_topk(queries, corpus, mask=0, **shared)
        offsets = torch.zeros(3, dtype=torch.int32)
        with pytest.raises(ValueError, match=message):
            _C.cosine_rerank(queries, corpus, listed=0, offsets=offsets.data_ptr(), **shared)

    def test_every_operator_has_a_compiled_implementation():
        for name in ("inverse_norms", "cosine_topk", "cosine_rerank"):
            assert compiled.cpu_implementation(name) is not None
