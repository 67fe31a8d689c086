"""Rows and queries that exact search is measured with."""

import pytest
import torch

from bench.baselines.search import torch_topk
from bench.scoring.data import QUERIES, furthest_apart, gaussian, groups, recall, word_documents

KINDS = (gaussian, groups, word_documents)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_queries(kind):
    rows, queries = kind(300, 50, seed=3)
    assert rows.shape == (300, 50)
    assert queries.shape == (QUERIES, 50)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(QUERIES))
    assert torch.equal(kind(300, 50, seed=3)[0], rows)
    assert not torch.equal(kind(300, 50, seed=4)[0], rows)


def test_only_gaussian_rows_are_far_from_all_queries():
    of_gaussian, of_groups, of_words = (
        torch_topk(queries, rows, 1)[0].mean()
        for rows, queries in (kind(2000, 576) for kind in KINDS)
    )
    assert of_gaussian < 0.2
    assert of_groups > 0.7
    assert of_words > of_gaussian + 0.2


def test_recall_counts_rows_wherever_they_stand():
    exact = torch.tensor([[1, 2], [3, 4]])
    assert recall(torch.tensor([[2, 1], [3, 9]]), exact) == 0.75


def test_only_rows_that_differ_are_compared():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0]])
    one, other, far = (torch.tensor([[index]]) for index in range(3))
    assert furthest_apart(one, one, queries, rows) == 0
    assert furthest_apart(one, other, queries, rows) == 0
    assert furthest_apart(one, far, queries, rows) == 1
