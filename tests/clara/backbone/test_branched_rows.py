"""Rows that several branches share, repeated, and their gradients added up."""

import torch

from clara.backbone.branched_rows import BranchedRows
from clara.text.packing import Branch

LENGTHS = [5, 4, 2, 3, 1]
ROWS = BranchedRows(LENGTHS, [Branch(0, 3), Branch(1, 2), Branch(0, 3)])
INDEX = [0, 1, 2, 9, 10, 5, 6, 11, 12, 13, 0, 1, 2, 14]


def test_each_branch_has_the_rows_that_it_shares_in_front():
    x = torch.randn(15, 2, 3, dtype=torch.float64).requires_grad_()
    unrolled = ROWS.unroll(x)
    assert torch.equal(unrolled, x[INDEX])
    weight = torch.randn(len(INDEX), 2, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad((unrolled * weight).sum(), x)
    (theirs,) = torch.autograd.grad((x[INDEX] * weight).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_where_the_rows_lie():
    assert ROWS.first == 9
    assert ROWS.own == [2, 3, 1]
    assert ROWS.unrolled == [5, 5, 4]
    own = ROWS.own_rows
    assert [INDEX[row] for row in own] == list(range(9, 15))


def test_copies_of_a_row_are_added_up_in_one_sum():
    """Added one by one in bfloat16, 1 and 255 times 1/256 would stay 1."""
    count = 256
    rows = BranchedRows([2] + [1] * count, [Branch(0, 1)] * count)
    x = torch.zeros(2 + count, 1, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.zeros(2 * count, 1, dtype=torch.bfloat16)
    upstream[::2] = 1 / 256
    upstream[0] = 1
    rows.unroll(x).backward(upstream)
    assert x.grad[0].item() == torch.tensor(1 + 255 / 256).bfloat16().item()
