"""`cosine_topk` and `cosine_rerank` on a GPU against NumPy in float64."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from search_oracle import QUERY_DTYPES, assert_matches, corpus_of, dtypes, numpy_cosines

from clara_kernels import build_info, cosine_rerank, cosine_topk
from clara_kernels.cosine_topk import compiled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(build_info()["cuda"] is None, reason="built without CUDA"),
]


def on_gpu(*tensors):
    return [None if each is None else each.cuda() for each in tensors]


def search(queries, corpus, k, mask=None):
    found = cosine_topk(*on_gpu(queries, corpus), k, mask=None if mask is None else mask.cuda())
    return [each.cpu() for each in found]


def test_the_kernels_serve():
    for name in compiled.OPERATORS:
        assert compiled.cuda_implementation(name) is not None
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"clara::{name}", "CUDA")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("query_dtype", QUERY_DTYPES, ids=str)
@pytest.mark.parametrize("d", [8192, 32_768, 262_144])
def test_long_rows_that_are_nearly_the_query(dtype, query_dtype, d):
    """All products are positive: what tensor cores cut off adds up."""
    queries = torch.randn(9, d).to(query_dtype)
    corpus = (queries.float() + 1e-3 * torch.randn(9, d)).to(dtype)
    scores, rows = search(queries, corpus, 3)
    exact = np.take_along_axis(numpy_cosines(queries, corpus), rows.numpy(), 1)
    assert exact[:, 0].min() > 0.99
    assert np.abs(scores.numpy() - exact).max() <= (d / 512 + 528) * 2.0**-24


@dtypes
def test_threads_that_search_with_different_lists(dtype):
    """What one thread asks of the device for its kernel takes nothing from another's."""
    queries, corpus = on_gpu(torch.randn(64, 576), corpus_of(5000, 576, dtype))
    wanted = {k: cosine_topk(queries, corpus, k) for k in (10, 60)}
    failed = []

    def repeat(k):
        try:
            for _ in range(200):
                scores, rows = cosine_topk(queries, corpus, k)
                assert torch.equal(rows, wanted[k][1])
                assert torch.equal(scores, wanted[k][0])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=repeat, args=(k,)) for k in (10, 60, 10, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@dtypes
@pytest.mark.parametrize("query_dtype", QUERY_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("b", "n", "d", "k"),
    [
        (1, 1, 1, 1),
        (3, 70, 1, 7),
        (8, 1000, 17, 5),
        (9, 333, 127, 40),
        (70, 3001, 576, 11),
        (1, 20_000, 1031, 2048),
        (130, 5000, 64, 2048),
        (2, 300, 70_001, 10),
        (33, 257, 33_000, 10),
    ],
)
def test_matches_numpy(dtype, query_dtype, b, n, d, k):
    queries, corpus = torch.randn(b, d).to(query_dtype), corpus_of(n, d, dtype)
    if b * n * d < 2**24:
        assert_matches(search(queries, corpus, k), queries, corpus, k)
    else:  # NumPy would need all products at a time
        scores, rows = search(queries, corpus, k)
        expected = cosine_topk(queries, corpus, k)
        near = 2e-4 if dtype == torch.int8 else 2e-6
        torch.testing.assert_close(scores, expected[0], rtol=0, atol=near)
        assert (rows == expected[1]).float().mean() > 0.95


@dtypes
@pytest.mark.parametrize("b", [4, 20])
def test_masks_strides_and_ties(dtype, b):
    queries = torch.randn(b, 203)
    corpus = corpus_of(9, 203, dtype)[torch.randint(9, (4000,))]
    mask = torch.rand(4000) < 0.3
    assert_matches(search(queries, corpus, 100, mask), queries, corpus, 100, mask)
    assert_matches(search(queries, corpus, 100), queries, corpus, 100)
    wide = torch.zeros(4000, 210, dtype=dtype)
    wide[:, 3:206] = corpus
    found = cosine_topk(queries.cuda(), wide.cuda()[:, 3:206], 100)
    expected = search(queries, corpus, 100)
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])
    few = torch.zeros(4000, dtype=torch.bool)
    few[[7, 70, 700]] = True
    scores, rows = search(queries, corpus, 5, few)
    assert (rows[:, 3:] == -1).all()
    assert (scores[:, 3:] == -math.inf).all()


@dtypes
@pytest.mark.parametrize("b", [5, 40])
def test_a_score_does_not_depend_on_the_row_s_place(dtype, b):
    queries, corpus = torch.randn(b, 1300), corpus_of(5000, 1300, dtype)
    scores, rows = search(queries, corpus, 60)
    order = torch.randperm(5000)
    shuffled = search(queries, corpus[order], 60)
    assert torch.equal(shuffled[0], scores)
    for part in (slice(0, 1234), slice(1234, 5000)):
        inside = search(queries, corpus[part], 2048)
        for i in range(b):
            known = dict(zip(inside[1][i].tolist(), inside[0][i].tolist()))
            for score, row in zip(scores[i].tolist(), rows[i].tolist()):
                if part.start <= row < part.stop:
                    assert known[row - part.start] == score


@pytest.mark.parametrize("dtype", QUERY_DTYPES, ids=str)
@pytest.mark.parametrize("b", [2, 12])
def test_rows_that_are_not_numbers_or_extreme(dtype, b):
    corpus = corpus_of(300, 30, dtype)
    corpus[7, 3], corpus[19, 29], corpus[150] = math.nan, math.inf, -math.inf
    corpus[20] = 0
    if dtype != torch.float16:
        corpus[21], corpus[22] = corpus[23] * 2.0**-100, corpus[23] * 2.0**90
    queries = torch.randn(b, 30)
    queries[1] *= 1e-30
    scores, rows = search(queries, corpus, 300)
    assert rows[:, -3:].tolist() == [[7, 19, 150]] * b
    assert scores[:, -3:].isnan().all()
    sound = torch.ones(300, dtype=torch.bool)
    sound[[7, 19, 150]] = False
    squeezed = (sound.cumsum(0) - 1)[rows[:, :297]]
    assert_matches((scores[:, :297], squeezed), queries, corpus[sound], 297)


@dtypes
def test_inverse_norms(dtype):
    corpus = corpus_of(3000, 1203, dtype)
    corpus[5] = 0
    found = torch.ops.clara.inverse_norms(corpus.cuda()).cpu()
    torch.testing.assert_close(found, torch.ops.clara.inverse_norms(corpus), rtol=1e-6, atol=0)


@dtypes
def test_rerank(dtype):
    queries, corpus = torch.randn(6, 1030), corpus_of(9000, 1030, dtype)
    counts = [3, 0, 7000, 1, 40, 500]
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    rows = torch.cat([torch.randperm(9000)[:count] for count in counts])
    arguments = on_gpu(queries, corpus, offsets, rows)
    found = cosine_rerank(*arguments[:2], 300, offsets=arguments[2], rows=arguments[3])
    cosines = numpy_cosines(queries[2:3], corpus)
    for i, count in enumerate(counts):
        own = rows[offsets[i] : offsets[i + 1]]
        scores, indices = found[0][i].cpu(), found[1][i].cpu()
        filled = min(count, 300)
        assert (indices[filled:] == -1).all()
        assert set(indices[:filled].tolist()) <= set(own.tolist())
        if i == 2:
            mask = torch.zeros(9000, dtype=torch.bool)
            mask[own] = True
            assert_matches((scores[None], indices[None]), queries[2:3], corpus, 300, mask)
            near = np.abs(scores.numpy() - cosines[0, indices.numpy()]).max()
            assert near < 1e-4
    # The same scores as a search by few queries gives.
    whole = cosine_topk(*arguments[:2], 300)
    every = torch.arange(9000, device="cuda").repeat(6)
    bounds = torch.arange(0, 6 * 9000 + 1, 9000, dtype=torch.int32, device="cuda")
    again = cosine_rerank(*arguments[:2], 300, offsets=bounds, rows=every)
    assert torch.equal(again[0], whole[0])
    assert torch.equal(again[1], whole[1])


@dtypes
@pytest.mark.parametrize("b", [3, 64])
def test_runs_in_a_graph_and_waits_for_nothing(dtype, b):
    queries, corpus = torch.randn(b, 576, device="cuda"), corpus_of(4000, 576, dtype).cuda()
    norms = torch.ops.clara.inverse_norms(corpus)
    call = torch.ops.clara.cosine_topk
    expected = call(queries, corpus, norms, None, 10)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(queries, corpus, norms, None, 10)
    other = torch.randn_like(queries)
    queries.copy_(other)
    graph.replay()
    after = call(queries, corpus, norms, None, 10)
    assert torch.equal(found[1], after[1])
    assert torch.equal(found[0], after[0])
    assert not torch.equal(found[1], expected[1])


@pytest.mark.parametrize("b", [1, 8, 9, 256, 5000])
@pytest.mark.parametrize("k", [1, 10, 2048])
def test_workspace_is_under_64_mib(b, k):
    queries = torch.empty(b, 576, device="cuda")
    corpus = torch.empty(1, 576, device="cuda", dtype=torch.bfloat16).expand(10_000_000, 576)
    needed = compiled.native.cuda_cosine_topk_workspace(
        compiled._rows(queries), compiled._rows(corpus), k, 0
    )
    assert needed < 64 << 20


@dtypes
def test_operators_are_registered_soundly(dtype):
    queries, corpus, mask = on_gpu(torch.randn(3, 8), corpus_of(11, 8, dtype), torch.rand(11) < 0.5)
    torch.library.opcheck(torch.ops.clara.inverse_norms, (corpus,))
    norms = torch.ops.clara.inverse_norms(corpus)
    torch.library.opcheck(torch.ops.clara.cosine_topk, (queries, corpus, norms, mask, 5))
    offsets = torch.tensor([0, 4, 4, 11], dtype=torch.int32, device="cuda")
    arguments = (queries, corpus, norms, None, offsets, 5)
    torch.library.opcheck(torch.ops.clara.cosine_rerank, arguments)
