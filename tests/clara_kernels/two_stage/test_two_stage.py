"""Two-stage search: what is rescored, and how often the result is right."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clara_kernels.two_stage.search
from clara_kernels import (
    Corpus,
    Faiss,
    MeanPooled,
    RandomProjection,
    TwoStageSearch,
    cosine_topk,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_rows(count, width, dtype=torch.float32, seed=0):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (rows * 40).clamp(-127, 127).to(dtype) if dtype == torch.int8 else rows.to(dtype)


def clustered(count, width, seed=0):
    """Rows around a hundred centres, and queries near some of them, as topics would be."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(100, width, generator=generator)
    topic = torch.randint(100, (count,), generator=generator)
    rows = centres[topic] + torch.randn(count, width, generator=generator)
    queries = rows[:20] + torch.randn(20, width, generator=generator)
    return rows, queries


class Proposed:
    """A first stage that proposes what it was given."""

    def __init__(self, rows):
        self.rows = rows

    def candidates(self, queries, count):
        return self.rows


def stages(corpus):
    return [MeanPooled(corpus, 4), RandomProjection(corpus, 24, 3), Faiss("Flat", corpus)]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 40),
    batch=st.integers(0, 4),
    k=st.integers(1, 50),
    oversampling=st.sampled_from([1, 1.5, 3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_candidates_are_rescored_exactly(count, batch, k, oversampling, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, queries = random_rows(count, 6, dtype, seed), torch.randn(batch, 6, generator=generator)
    width, proposals = min(k, count), min(count, math.ceil(k * oversampling))
    # With repetitions, absent ones and, as a wrong index may have them, rows that do not exist.
    proposed = torch.randint(-2, count + 2, (batch, proposals), generator=generator)
    search = TwoStageSearch(Proposed(proposed.clone()), Corpus(rows), oversampling=oversampling)
    scores, found = search.search(queries, k)
    assert scores.shape == found.shape == (batch, width)
    for query in range(batch):
        own = torch.zeros(count, dtype=torch.bool)
        own[[row for row in proposed[query].tolist() if 0 <= row < count]] = True
        expected = cosine_topk(queries[query : query + 1], rows, k, mask=own)
        assert scores[query].equal(expected[0][0])
        assert found[query].equal(expected[1][0])
    if batch:
        exact = cosine_topk(queries, rows, k)[1]
        hits = sum(len({*a} & {*b}) for a, b in zip(exact.tolist(), found.tolist()))
        assert search.recall(queries, k) == hits / (batch * width)


@dtypes
def test_all_rows_as_candidates_is_the_exact_search(dtype):
    corpus, queries = Corpus(random_rows(90, 32, dtype)), torch.randn(3, 32)
    expected = cosine_topk(queries, corpus, 9)
    for first in stages(corpus):
        search = TwoStageSearch(first, corpus, oversampling=10)
        scores, rows = search.search(queries, 9)
        assert scores.equal(expected[0])
        assert rows.equal(expected[1])
        assert search.recall(queries, 9) == 1.0
        assert search.search(queries[:0], 9)[1].shape == (0, 9)


def test_recall_is_measured():
    rows, queries = torch.eye(8), torch.eye(8)[:2]
    exact = cosine_topk(queries, rows, 4)[1]
    assert exact.tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]
    proposed = torch.tensor([[0, 3, 6, 7], [-1, 1, -1, 1]])
    search = TwoStageSearch(Proposed(proposed), Corpus(rows), oversampling=1)
    assert search.recall(queries, 4) == 3 / 8


def test_first_stages_find_most_of_clustered_rows():
    rows, queries = clustered(4000, 256)
    corpus = Corpus(rows)
    firsts = {
        "MeanPooled": MeanPooled(corpus, 2),
        "RandomProjection": RandomProjection(corpus, 128, 1),
        "Faiss": Faiss("IVF16,SQ8", corpus),
    }
    for name, first in firsts.items():
        recalls = [
            TwoStageSearch(first, corpus, oversampling=factor).recall(queries, 10)
            for factor in (1, 4, 30)
        ]
        assert recalls == sorted(recalls), name
        assert recalls[-1] > 0.9, name


def test_an_empty_corpus():
    corpus, queries = Corpus(torch.empty(0, 32)), torch.randn(3, 32)
    for first in stages(corpus):
        assert first.candidates(queries, 2).tolist() == [[-1, -1]] * 3
        scores, rows = TwoStageSearch(first, corpus).search(queries, 5)
        assert scores.shape == rows.shape == (3, 0)
        assert rows.dtype == torch.int64


def test_queries_in_parts(monkeypatch):
    monkeypatch.setattr(clara_kernels.two_stage.search, "_CANDIDATES", 20)
    corpus, queries = Corpus(random_rows(30, 12)), torch.randn(7, 12)
    search = TwoStageSearch(MeanPooled(corpus, 3), corpus, oversampling=3)
    together, rows = search.search(queries, 3)
    for place in range(7):
        alone = search.search(queries[place : place + 1], 3)
        assert alone[0][0].equal(together[place])
        assert alone[1][0].equal(rows[place])


CORPUS = Corpus(torch.ones(3000, 6))
MEAN = MeanPooled(CORPUS, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MeanPooled(torch.ones(2, 2), 1), TypeError, "corpus must be a Corpus, got Tensor"),
        (
            lambda: MeanPooled(CORPUS, 4),
            ValueError,
            "memory_tokens must be a divisor of the corpus' width, 6, got 4",
        ),
        (lambda: MeanPooled(CORPUS, 0), ValueError, "memory_tokens must be at least 1, got 0"),
        (
            lambda: MeanPooled(CORPUS, 2, torch.int16),
            ValueError,
            "dtype must be int8, float16, bfloat16 or float32, got torch.int16",
        ),
        (
            lambda: RandomProjection(CORPUS, 7),
            ValueError,
            "width must be at most the corpus' 6, got 7",
        ),
        (lambda: RandomProjection(CORPUS, 2, -1), ValueError, "seed must be at least 0, got -1"),
        (
            lambda: RandomProjection(CORPUS, 2, 1 << 64),
            ValueError,
            f"seed must be below 2⁶⁴, got {1 << 64}",
        ),
        (
            lambda: MEAN.candidates(torch.ones(1, 6), 0),
            ValueError,
            "count must be at least 1, got 0",
        ),
        (
            lambda: MEAN.candidates(torch.ones(1, 6), 2049),
            ValueError,
            "count must be at most 2048, got 2049",
        ),
        (
            lambda: MEAN.candidates(torch.ones(1, 5), 1),
            ValueError,
            "queries must have shape [B, 6], got [1, 5]",
        ),
        (
            lambda: MEAN.candidates(torch.ones(1, 6, device="meta"), 1),
            ValueError,
            "queries must be on the device of codes (cpu), got meta",
        ),
        (
            lambda: TwoStageSearch(MEAN, torch.ones(2)),
            TypeError,
            "corpus must be a Corpus, got Tensor",
        ),
        (
            lambda: TwoStageSearch(3, CORPUS),
            TypeError,
            "first must have a method candidates, got int",
        ),
        (
            lambda: TwoStageSearch(MEAN, CORPUS, oversampling="2"),
            TypeError,
            "oversampling must be a number, got str",
        ),
        (
            lambda: TwoStageSearch(MEAN, CORPUS, oversampling=0.5),
            ValueError,
            "oversampling must be at least 1 and finite, got 0.5",
        ),
        (
            lambda: TwoStageSearch(MEAN, Corpus(torch.ones(3000, 4))),
            ValueError,
            "first must be for rows of width 4, got 6",
        ),
        (
            lambda: TwoStageSearch(MEAN, CORPUS[:9]),
            ValueError,
            "first must be for 9 rows, got one for 3000",
        ),
        (
            lambda: TwoStageSearch(MEAN, CORPUS).search(torch.ones(1, 6), 300),
            ValueError,
            "k must be at most 256 where first proposes up to 2048 rows, 8 for each, got 300",
        ),
        (
            lambda: TwoStageSearch(MEAN, CORPUS).search(torch.ones(1, 6), 0),
            ValueError,
            "k must be at least 1, got 0",
        ),
        (
            lambda: TwoStageSearch(MEAN, CORPUS).recall(torch.ones(0, 6), 1),
            ValueError,
            "recall needs at least one query and one row, got none",
        ),
        (
            lambda: TwoStageSearch(Proposed(torch.ones(1, 8)), CORPUS).search(torch.ones(1, 6), 1),
            ValueError,
            "candidates of first must be int64 [1, 8], got torch.float32 [1, 8]",
        ),
        (
            lambda: TwoStageSearch(Proposed([0]), CORPUS).search(torch.ones(1, 6), 1),
            ValueError,
            "candidates of first must be int64 [1, 8], got list",
        ),
        (
            lambda: Faiss(3, CORPUS),
            TypeError,
            "index must be a faiss.Index or what faiss.index_factory takes, got int",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.gpu
def test_on_the_gpu():
    rows, queries = clustered(4000, 256)
    corpus = Corpus(rows)
    here, there = queries, queries.cuda()
    for first in (MeanPooled(corpus, 2), RandomProjection(corpus, 64, 3)):
        moved = first.to("cuda")
        assert moved.to("cuda") is moved
        assert moved.reduce(there).device.type == "cuda"
        # Rescored on the CPU, where the corpus is.
        search, expected = TwoStageSearch(moved, corpus), TwoStageSearch(first, corpus)
        assert abs(search.recall(there, 10) - expected.recall(here, 10)) < 0.02
        scores, found = search.search(there, 10)
        assert scores.device == found.device == there.device
        full = TwoStageSearch(
            type(first)._restored(moved.codes, 256, first._settings()), corpus.to("cuda")
        )
        assert abs(full.recall(there, 10) - expected.recall(here, 10)) < 0.02
