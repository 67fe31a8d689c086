"""A selection of an index answers as an index of those documents alone."""

import pytest
import torch

from clara.index import Details, MemoryIndexError, Selection


@pytest.fixture
def index(make_index, make_documents):
    index = make_index((2, 8), columns={"n": int})
    names = [f"d{n}" for n in range(20)]
    details = {name: Details({"n": n}) for n, name in enumerate(names)}
    index.add(make_documents(names), details)
    return index


def test_what_a_selection_finds(index):
    queries = torch.randn(3, 2, 8, generator=torch.manual_seed(0))
    every = index.search(queries, 20)
    kept = {f"d{n}" for n in range(15, 20)}
    expected = [[hit for hit in hits if hit.id in kept][:3] for hits in every]
    assert Selection(index, "n >= 15").search(queries, 3) == expected
    assert Selection(index, ids=sorted(kept)).search(queries, 3) == expected
    both = Selection(index, "n < 17", sorted(kept)).search(queries, 9)
    assert {hit.id for hit in both[0]} == {"d15", "d16"}
    assert Selection(index).fingerprint == index.fingerprint


def test_nothing_left_is_an_error(index, make_index):
    with pytest.raises(MemoryIndexError, match="the filter 'n > 99' left no document to search"):
        Selection(index, "n > 99").search(torch.ones(2, 8), 1)
    with pytest.raises(MemoryIndexError, match="the ids left no document to search"):
        Selection(index, ids=[]).search(torch.ones(2, 8), 1)


def test_an_empty_index_has_no_hits(make_index):
    empty = make_index((2, 8), columns={"n": int})
    assert Selection(empty, "n > 1").search(torch.ones(2, 8), 1) == [[]]
