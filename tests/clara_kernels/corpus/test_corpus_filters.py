"""Searches of a `Corpus` among some of its rows: by mask, by id, by both."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clara_kernels.corpus.search
from clara_kernels import Corpus, cosine_topk


def names(kind, count):
    return (
        [7 * row - 90 for row in range(count)] if kind == "int" else [f"d{r}" for r in range(count)]
    )


def ids_of(rows, kind, ids):
    """What a search returns for these rows."""
    if kind == "int":
        return [[-1 if row < 0 else ids[row] for row in query] for query in rows]
    return [[ids[row] for row in query if row >= 0] for query in rows]


@settings(deadline=None, max_examples=80)
@given(
    count=st.integers(1, 60),
    batch=st.integers(0, 4),
    k=st.integers(1, 70),
    kind=st.sampled_from(["int", "str"]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_filters_are_masks(count, batch, k, kind, share, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 6, generator=generator)
    queries = torch.randn(batch, 6, generator=generator)
    ids = names(kind, count)
    corpus = Corpus(rows, ids=ids)
    allowed = torch.rand(count, generator=generator) < share
    wanted = [ids[row] for row in allowed.nonzero()[:, 0].flip(0).tolist()]
    mask = torch.rand(count, generator=generator) < 0.6 if masked else None
    both = allowed & mask if masked else allowed
    scores, found = corpus.search(queries, k, ids=wanted + wanted[:2], mask=mask)
    expected, expected_rows = cosine_topk(queries, rows, k, mask=both)
    assert scores.equal(expected)
    found = found.tolist() if kind == "int" else found
    assert found == ids_of(expected_rows.tolist(), kind, ids)
    by_mask = corpus.search(queries, k, mask=both)
    assert by_mask[0].equal(expected)
    # Against an oracle in float64, not only the operator itself.
    q, c = (each.double().numpy() for each in (queries, rows))
    cosines = q @ c.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(c, axis=1)
    best = -np.sort(-np.where(both.numpy(), cosines, -np.inf), axis=1)[:, :k]
    np.testing.assert_allclose(scores.numpy(), best, atol=2e-5)


def test_equal_scores_are_found_by_row_in_whatever_order_ids_are_listed():
    corpus = Corpus(torch.ones(20, 3), ids=[f"d{row}" for row in range(20)])
    found = corpus.search(torch.ones(1, 3), 3, ids=["d9", "d3", "d17", "d5"])[1]
    assert found == [["d3", "d5", "d9"]]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_few_ids_read_a_few_rows(monkeypatch, kind):
    ids = names(kind, 400)
    corpus = Corpus(torch.randn(400, 5), ids=ids)
    queries = torch.randn(4, 5)
    expected = corpus.search(queries, 10, ids=ids[:101])  # too many: by mask
    searched = []

    def topk(queries, part, k, **others):
        searched.append(len(part))
        return cosine_topk(queries, part, k, **others)

    monkeypatch.setattr(clara_kernels.corpus.search, "cosine_topk", topk)
    few = corpus.search(queries, 100, ids=ids[:100])
    assert searched == [0]
    assert few[0].shape == (4, 100)
    corpus.search(queries, 10, ids=ids[:101])
    assert searched == [0, 0, 400]
    assert few[0][:, 0].tolist() <= expected[0][:, 0].tolist()


def test_ids_as_an_array_or_a_tensor():
    corpus = Corpus(torch.randn(9, 5), ids=torch.arange(9) * 2)
    queries = torch.randn(2, 5)
    expected = corpus.search(queries, 3, ids=[4, 0, 16])
    for wanted in (np.array([4, 0, 16], dtype=np.int32), torch.tensor([4, 0, 16]), {16, 4, 0}):
        scores, found = corpus.search(queries, 3, ids=wanted)
        assert scores.equal(expected[0])
        assert found.equal(expected[1])
    assert corpus.ids.tolist() == list(range(0, 18, 2))


def test_no_ids_find_nothing():
    corpus = Corpus(torch.randn(9, 5), ids=range(9))
    for ids in ([], torch.empty(0, dtype=torch.int64)):
        scores, found = corpus.search(torch.randn(2, 5), 3, ids=ids)
        assert scores.tolist() == [[-torch.inf] * 3] * 2
        assert found.tolist() == [[-1] * 3] * 2
    named = Corpus(torch.randn(2, 5), ids=["a", "b"])
    assert named.search(torch.randn(2, 5), 3, ids=iter(()))[1] == [[], []]


def test_nothing_to_search():
    for ids in (None, [], torch.empty(0, dtype=torch.int64)):
        corpus = Corpus(torch.empty(0, 5), ids=ids)
        scores, found = corpus.search(torch.randn(2, 5), 3)
        assert scores.shape == found.shape == (2, 0)


INTS = Corpus(torch.ones(3, 2), ids=[5, 6, 7])
MANY = Corpus(torch.ones(2049, 2), ids=range(2049))
STRS = Corpus(torch.ones(3, 2), ids=["a", "b", "c"])
QUERY = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("corpus", "arguments", "error", "message"),
    [
        (INTS, {"ids": [5, 8, 9]}, ValueError, "ids must be ids of the corpus, got 8"),
        (STRS, {"ids": ["a", "z"]}, ValueError, "ids must be ids of the corpus, got 'z'"),
        (STRS, {"ids": [1]}, ValueError, "ids must be ids of the corpus, got 1"),
        (STRS, {"ids": "abc"}, TypeError, "ids must be an iterable of ids, got str"),
        (INTS, {"ids": "abc"}, TypeError, "ids must be an iterable of ids, got str"),
        (STRS, {"ids": 5}, TypeError, "ids must be an iterable of ids, got int"),
        (INTS, {"ids": [-5]}, ValueError, "ids must be ids of the corpus, got -5"),
        (INTS, {"ids": 5}, TypeError, "ids must be an iterable of ids, got int"),
        (INTS, {"ids": ["a"]}, TypeError, "ids must be all int, got str at place 0"),
        (
            Corpus(torch.ones(3, 2)),
            {"ids": [1]},
            ValueError,
            "ids must be None for a corpus without ids; a mask takes row numbers",
        ),
        (INTS, {"ids": [5], "k": 0}, ValueError, "k must be at least 1, got 0"),
        (MANY, {"ids": [], "k": 2049}, ValueError, "k must be at most 2048, got 2049"),
        (INTS, {"ids": [5], "k": 1.0}, TypeError, "k must be an int, got float"),
        (
            INTS,
            {"ids": [5], "mask": torch.ones(2, dtype=torch.bool)},
            ValueError,
            "mask must have shape [3], got [2]",
        ),
        (INTS, {"mask": torch.ones(3)}, TypeError, "mask must be bool, got torch.float32"),
        (
            INTS,
            {"queries": torch.ones(1, 3)},
            ValueError,
            "corpus must have shape [N, 3], as queries have, got [3, 2]",
        ),
        (
            INTS,
            {"ids": [5], "queries": torch.ones(2)},
            ValueError,
            "queries must have shape [B, D], got [2]",
        ),
        (
            INTS,
            {"queries": torch.ones(1, 2, device="meta")},
            ValueError,
            "corpus must be on the device of queries (meta), got cpu",
        ),
    ],
)
def test_bad_arguments(corpus, arguments, error, message):
    arguments = {"queries": QUERY, "k": 1} | arguments
    with pytest.raises(error) as caught:
        corpus.search(arguments.pop("queries"), arguments.pop("k"), **arguments)
    assert str(caught.value) == message
