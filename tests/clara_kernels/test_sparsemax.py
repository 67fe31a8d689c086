import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels.sparsemax import sparsemax


def bisected(x):
    """The projection by another route: bisection on the threshold, in float64."""
    x = x.double()
    low, high = x.amax(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (x - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (x - low).clamp(min=0)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 70),
    spread=st.sampled_from([1e-3, 0.3, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_is_the_projection_onto_the_simplex(rows, columns, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * spread
    x = x + 5
    torch.testing.assert_close(sparsemax(x), bisected(x), rtol=0, atol=1e-12)


def test_hand_computed_rows_with_ties_on_the_edge_of_the_support():
    x = torch.tensor([[1.0, 0.0, -3.0], [0.5, 0.5, 0.5], [0.6, 0.4, 0.0], [0.0, 9.0, 9.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [1 / 3] * 3, [0.6, 0.4, 0.0], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(sparsemax(x), expected)


@pytest.mark.parametrize(("shape", "dim"), [((4, 9), -1), ((5, 3, 2), 1), ((7,), 0)])
def test_gradcheck(shape, dim):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sparsemax(x, dim), (x,))


def test_gradient_is_centred_on_the_support():
    x = torch.tensor([1.0, 0.0, 0.9, -torch.inf], requires_grad=True)
    grad = torch.tensor([3.0, 50.0, 1.0, 70.0])
    sparsemax(x).backward(grad)
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 0.0, -1.0, 0.0]))
    edge = torch.tensor([1.0, 0.0], requires_grad=True)
    sparsemax(edge).backward(torch.tensor([1.0, 7.0]))
    assert edge.grad.tolist() == [0.0, 0.0]


def test_masked_entries_change_nothing_for_the_others():
    x = torch.randn(6, 11, dtype=torch.float64)
    masked = torch.cat([x, torch.full((6, 4), -torch.inf, dtype=torch.float64)], dim=1)
    shuffle = torch.randperm(15)
    torch.testing.assert_close(
        sparsemax(masked[:, shuffle]),
        torch.cat([sparsemax(x), torch.zeros(6, 4, dtype=torch.float64)], dim=1)[:, shuffle],
    )


def test_a_row_of_masks_is_zeros_with_a_zero_gradient():
    x = torch.tensor([[-torch.inf] * 3, [0.0, -torch.inf, 0.2]], requires_grad=True)
    result = sparsemax(x)
    result.backward(torch.randn(2, 3))
    assert result[0].tolist() == [0.0, 0.0, 0.0]
    assert x.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_values_show_in_their_own_row_only(bad):
    x = torch.tensor([[bad, 0.0, 1.0], [0.0, 0.0, 1.0]])
    result = sparsemax(x)
    assert result[0].isnan().all()
    assert result[1].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_low_precision_is_rounded_once(dtype, ulp):
    x = torch.randn(20, 33).to(dtype)
    result = sparsemax(x)
    assert result.dtype == dtype
    expected = sparsemax(x.double())
    torch.testing.assert_close(result.double(), expected, rtol=ulp, atol=1e-6)


def test_an_offset_costs_no_precision():
    x = torch.randn(5, 40).mul(64).round() / 64
    assert torch.equal(sparsemax(x + 4096), sparsemax(x))


def test_empty_tensors():
    assert sparsemax(torch.empty(0, 4)).shape == (0, 4)
    assert sparsemax(torch.empty(3, 0)).shape == (3, 0)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        sparsemax([0.1])
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        sparsemax(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="x must have at least one dimension"):
        sparsemax(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"dim must be in \[-2, 1\], got 2"):
        sparsemax(torch.zeros(2, 2), dim=2)
