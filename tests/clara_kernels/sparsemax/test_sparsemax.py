from itertools import product

import pytest
import torch
from comparison import IMPLEMENTATIONS, assert_close_to, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels.dispatch import cpu_tensors_use
from clara_kernels.sparsemax import sparsemax
from clara_kernels.sparsemax.reference import sparsemax_reference

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


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


def with_gradient(function, x, grad):
    x = x.detach().clone().requires_grad_()
    y = function(x)
    y.backward(grad)
    return y.detach(), x.grad


def check(x):
    """Values and gradients against the sort in float64, allowed twice the sort's own error."""
    grad = torch.randn(x.shape, device=x.device).to(x.dtype)
    exact = with_gradient(sparsemax_reference, x.double(), grad.double())
    plain = with_gradient(sparsemax_reference, x, grad)
    actual = with_gradient(sparsemax, x, grad)
    assert_close_to(actual[0], exact[0], plain[0])
    # An entry that is on the edge of the support within rounding may be on either side of it.
    clear = (exact[0] > 1e-6) | (exact[0] == 0) & (actual[0] == 0)
    assert (exact[0][~clear] < 1e-6).all()
    rows = clear.all(-1)
    assert_close_to(actual[1][rows], exact[1][rows], plain[1][rows], scale=1.0)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("rows", "columns", "scale"),
    [
        *product([1, 3], [7], [1e-30, 1e-4, 1.0, 50.0, 3e4]),
        *product([5], [1000, 1040], [1e-30, 1e-4, 1.0, 50.0, 3e4]),
        (1, 1, 1.0),
        (300, 5, 1.0),
    ],
)
def test_every_implementation(implementation, dtype, rows, columns, scale):
    x = (torch.randn(rows, columns) * scale).clamp(-6e4, 6e4).to(dtype)
    x[:, ::3] = x[:, :1].clone()  # ties
    x[-1, 1:] = -torch.inf
    with cpu_tensors_use(implementation), poisoned("sparsemax"):
        check(x)


@pytest.mark.parametrize("columns", [9000, 32770, 40000, 131072])
def test_rows_in_passes(columns):
    x = torch.randn(2, columns)
    x[1] *= 1e-3  # a large support
    with cpu_tensors_use("triton"), poisoned("sparsemax"):
        check(x)


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=15)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    data=st.data(),
    dtype=st.sampled_from(FLOATS),
)
def test_any_shape_and_dimension(implementation, shape, data, dtype):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.randn(shape).to(dtype)
    with cpu_tensors_use(implementation), poisoned("sparsemax"):
        actual = sparsemax(x, dim)
    assert_close_to(actual, sparsemax_reference(x.double(), dim), sparsemax_reference(x, dim))


@IMPLEMENTATIONS
def test_masks_and_bad_values_mean_the_same(implementation):
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[1, nan, -inf], [inf, 1, -inf], [-inf, -inf, -inf], [2, 2, -inf]])
    expected = torch.tensor([[nan, nan, 0], [nan, nan, 0], [0, 0, 0], [0.5, 0.5, 0]])
    with cpu_tensors_use(implementation), poisoned("sparsemax"):
        y, grad = with_gradient(sparsemax, x, torch.tensor([[3.0, 1.0, 9.0]] * 4))
    torch.testing.assert_close(y, expected, equal_nan=True)
    expected = torch.tensor([[nan, nan, 0], [nan, nan, 0], [0, 0, 0], [1.0, -1.0, 0]])
    torch.testing.assert_close(grad, expected, equal_nan=True)


def test_opcheck():
    x = torch.randn(3, 7, requires_grad=True)
    torch.library.opcheck(torch.ops.clara.sparsemax, (x,))
    y, bounds = torch.ops.clara.sparsemax(x.detach())
    arguments = (torch.randn_like(y), x.detach(), bounds)
    torch.library.opcheck(torch.ops.clara.sparsemax_backward, arguments)


def test_one_compiled_graph_serves_all_lengths():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(sparsemax, fullgraph=True, dynamic=True, backend=count)
    for columns in (5, 9, 13, 40):
        x = torch.randn(3, columns)
        assert torch.equal(compiled(x), sparsemax(x))
    assert len(graphs) == 1
    compiled = torch.compile(sparsemax, fullgraph=True)
    x, grad = torch.randn(4, 6), torch.randn(4, 6)
    for one, other in zip(
        with_gradient(compiled, x, grad), with_gradient(sparsemax, x, grad), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_under_autocast():
    x = torch.randn(4, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sparsemax(x)
    assert torch.equal(inside, sparsemax(x))


@IMPLEMENTATIONS
def test_rows_that_are_not_contiguous(implementation):
    x = torch.randn(6, 5).T
    with cpu_tensors_use(implementation):
        y, grad = with_gradient(sparsemax, x, torch.ones(6, 5).T)
    torch.testing.assert_close(y, sparsemax_reference(x))
    torch.testing.assert_close(grad, torch.zeros(5, 6), atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", [1, 127, 1024, 8191, 16384, 32768, 100_003, 131_072])
def test_on_the_gpu(dtype, columns):
    for scale in (1e-3, 1.0, 30.0):
        with poisoned("sparsemax"):
            check((torch.randn(5, columns, device="cuda") * scale).to(dtype))


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


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [1000, 40_000])
def test_in_a_cuda_graph(columns):
    x = torch.randn(64, columns, dtype=torch.bfloat16, device="cuda")
    grad = torch.randn_like(x)

    def run():
        y, bounds = torch.ops.clara.sparsemax(x)
        return y, torch.ops.clara.sparsemax_backward(grad, x, bounds)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.normal_()
    graph.replay()
    for one, other in zip(captured, run(), strict=True):
        assert torch.equal(one, other)
