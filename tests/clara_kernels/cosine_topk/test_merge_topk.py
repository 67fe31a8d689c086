"""`merge_topk` against sorting in Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import merge_topk

SCORES = [1.0, 0.5, 0.25, 0.0, -0.0, -0.5, -1.0, math.nan, -math.inf]
ONE, ROW = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)


def sorted_in_python(entries, k):
    """Entries (score, index) of one query, as they are to come."""

    def key(entry):
        score, index = entry
        if index < 0:
            return 2, 0.0, 0
        return (1, 0.0, index) if math.isnan(score) else (0, -score, index)

    best = sorted(entries, key=key)[:k]
    return [(-math.inf, -1) if index < 0 else (score, index) for score, index in best]


@st.composite
def results(draw):
    batch = draw(st.integers(0, 4))
    widths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    total = batch * sum(widths)
    scores = draw(st.lists(st.sampled_from(SCORES), min_size=total, max_size=total))
    one = st.integers(-1, 50)
    indices = draw(st.lists(one, min_size=total, max_size=total))
    return batch, widths, scores, indices


@settings(deadline=None, max_examples=200)
@given(results(), st.integers(1, 30))
def test_merging_is_sorting(given_results, k):
    batch, widths, scores, indices = given_results
    width = sum(widths)
    all_scores = torch.tensor(scores, dtype=torch.float32).view(batch, width)
    all_indices = torch.tensor(indices, dtype=torch.int64).view(batch, width)
    found, rows = merge_topk(all_scores.split(widths, 1), all_indices.split(widths, 1), k)
    assert found.shape == rows.shape == (batch, min(k, width))
    assert found.dtype == torch.float32
    for query in range(batch):
        pairs = zip(all_scores[query].tolist(), all_indices[query].tolist())
        expected = sorted_in_python(list(pairs), k)
        actual = list(zip(found[query].tolist(), rows[query].tolist()))
        # As text, so that NaN equals NaN; 0 and -0 tie, so that equal entries may swap signs.
        assert [row for _, row in actual] == [row for _, row in expected]
        plain = [[str(score + 0.0) for score, _ in each] for each in (actual, expected)]
        assert plain[0] == plain[1]


def test_merging_keeps_every_bit_of_a_score():
    scores = [torch.tensor([[0.1, -0.0]]), torch.tensor([[0.3, 0.0]])]
    found, rows = merge_topk(scores, [torch.tensor([[7, 1]]), torch.tensor([[3, 2]])], 4)
    assert rows.tolist() == [[3, 7, 1, 2]]
    assert found[0].view(torch.int32).tolist() == (
        torch.tensor([0.3, 0.1, -0.0, 0.0]).view(torch.int32).tolist()
    )


def test_merging_other_dtypes():
    scores = [torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[2.0]]).double()]
    found, _ = merge_topk(scores, [torch.tensor([[0, 1]]), torch.tensor([[2]])], 2)
    assert found.tolist() == [[3.0, 2.0]]
    assert found.dtype == torch.float64


@pytest.mark.parametrize(
    ("scores", "indices", "k", "error", "message"),
    [
        (
            [],
            [],
            1,
            ValueError,
            "scores and indices must be equally many, at least one, got 0 and 0",
        ),
        (
            [ONE],
            [ROW, ROW],
            1,
            ValueError,
            "scores and indices must be equally many, at least one, got 1 and 2",
        ),
        ([ONE], [ROW], 0, ValueError, "k must be at least 1, got 0"),
        ([ONE], [ROW], 1.5, TypeError, "k must be an int, got float"),
        ([ONE, [1]], [ROW, ROW], 1, TypeError, "scores[1] must be a torch.Tensor, got list"),
        (
            [ONE, ONE.double()],
            [ROW, ROW],
            1,
            TypeError,
            "scores[1] must be of one floating-point dtype for all, got torch.float64",
        ),
        ([ONE], [ROW.int()], 1, TypeError, "indices[0] must be int64, got torch.int32"),
        ([ONE[0]], [ROW[0]], 1, ValueError, "scores[0] must have shape [3, k], got [3]"),
        (
            [ONE, ONE[:1]],
            [ROW, ROW[:1]],
            1,
            ValueError,
            "scores[1] must have shape [2, k], got [1, 3]",
        ),
        ([ONE], [ROW[:, :2]], 1, ValueError, "indices[0] must have shape [2, 3], got [2, 2]"),
        (
            [ONE],
            [ROW.to("meta")],
            1,
            ValueError,
            "indices[0] must be on the device of scores[0] (cpu), got meta",
        ),
    ],
)
def test_bad_results(scores, indices, k, error, message):
    with pytest.raises(error) as caught:
        merge_topk(scores, indices, k)
    assert str(caught.value) == message
