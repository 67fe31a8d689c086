"""Linear layers with adapters in bfloat16: values against float64, by the module and without it."""

from __future__ import annotations

import pytest
import torch

from clara_kernels.adapted_linear import (
    adapted_linear,
    gradient_of_down,
    gradient_of_up,
    gradients,
    multiplies_here,
    reference,
    trains_here,
    with_change,
)
from clara_kernels.build import build_info

HERE = pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16",
    reason="this processor or build has no such kernel",
)
HALF_STEP = 2**-8


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def case(rows, inputs, outputs, rank, *, bias=False, dtype=torch.bfloat16):
    """x, W, b, A and B."""
    adapter = torch.randn(rank, inputs).to(dtype), torch.randn(outputs, rank).to(dtype)
    return (
        torch.randn(rows, inputs).to(dtype),
        torch.randn(outputs, inputs).to(dtype),
        torch.randn(outputs) if bias else None,
        *(adapter if rank else (None, None)),
    )


def exactly(x, weight, bias, down, up, scaling):
    """In float64, but for the rounding of `scaling · x A'`."""
    made = x.double() @ weight.double().T
    if down is not None:
        hidden = (scaling * (x.double() @ down.double().T)).to(x.dtype)
        made += hidden.double() @ up.double().T
    return made if bias is None else made + bias.double()


def assert_rounded_once(actual, expected):
    """Within half a step of each value; of small ones, of a step at the deviation of all."""
    error = (actual.double() - expected).abs()
    assert (
        error <= 1.05 * HALF_STEP * expected.abs().clamp_min(expected.square().mean() ** 0.5)
    ).all()


@pytest.mark.parametrize("by_module", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "rank"),
    [
        (1, 2, 1, 0),  # the smallest
        (8, 64, 50, 2),  # without lanes
        (9, 66, 49, 6),  # lanes that are not full, columns and outputs that are no multiples
        (20, 34, 48, 16),  # lanes and a few rows more
        (36, 96, 55, 50),  # an adapter of more outputs than are multiplied at a time
        (65, 32, 97, 16),  # more rows than are packed together
        (200, 1536, 7, 16),  # more than are packed at a time
    ],
)
def test_values(rows, inputs, outputs, rank, bias, by_module, monkeypatch):
    if not by_module:
        monkeypatch.setattr("clara_kernels.adapted_linear.functions.native", None)
    given = case(rows, inputs, outputs, rank, bias=bias)
    made = adapted_linear(*given, 0.5)
    assert made.dtype == torch.bfloat16
    assert made.shape == (rows, outputs)
    assert_rounded_once(made, exactly(*given, 0.5))


@HERE
def test_the_module_computes_what_the_reference_does(monkeypatch):
    given = case(70, 96, 60, 16, bias=True)
    made = adapted_linear(*given, 2.0)
    monkeypatch.setenv("CLARA_SIMD", "avx512")
    assert not multiplies_here(*given[:2])
    other = adapted_linear(*given, 2.0)
    assert torch.equal(other, reference.adapted_linear(*given, 2.0))
    # Sums in another order are rounded to the other neighbour now and then.
    assert (made == other).float().mean() > 0.95


@HERE
def test_threads_compute_the_same(set_threads):
    few, many = case(40, 256, 1024, 16), case(700, 64, 256, 16, bias=True)
    for given in (few, many):
        made = []
        for threads in (1, 3):
            set_threads(threads)
            made.append(adapted_linear(*given, 0.7))
        assert torch.equal(*made)


@HERE
def test_a_row_does_not_depend_on_those_before_it():
    """As long as it is multiplied in the same way: batches that are cut elsewhere repeat."""
    x, *rest = case(128, 64, 50, 16)
    assert torch.equal(adapted_linear(x, *rest, 1.0)[64:], adapted_linear(x[64:], *rest, 1.0))


def test_what_is_not_finite_reaches_its_row_alone():
    x, *rest = case(36, 64, 50, 16)
    expected = adapted_linear(x, *rest, 1.0)
    x[3], x[34] = torch.nan, torch.inf
    made = adapted_linear(x, *rest, 1.0)
    assert not made[[3, 34]].isfinite().any()
    others = [row for row in range(36) if row not in (3, 34)]
    assert torch.equal(made[others], expected[others])


@pytest.mark.parametrize(
    ("inputs", "rank", "dtype"),
    [(7, 2, torch.bfloat16), (8, 3, torch.bfloat16), (8, 2, torch.float32)],
)
def test_other_sizes_and_dtypes_go_by_the_reference(inputs, rank, dtype):
    given = case(5, inputs, 6, rank, dtype=dtype)
    made = adapted_linear(*given, 0.5)
    assert made.dtype == dtype
    assert torch.equal(made, reference.adapted_linear(*given, 0.5))


@HERE
def test_what_multiplies_here(monkeypatch):
    even = torch.ones(3, 4, dtype=torch.bfloat16)
    assert multiplies_here(even)
    assert not multiplies_here(even, even[:, :3].contiguous())
    assert not multiplies_here(even.T)
    assert not multiplies_here(even.float())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not multiplies_here(even)


def test_any_leading_dimensions_and_strides():
    x, *rest = case(24, 32, 10, 4)
    expected = adapted_linear(x, *rest, 1.0)
    assert torch.equal(adapted_linear(x.view(2, 3, 4, 32), *rest, 1.0).flatten(0, 2), expected)
    assert torch.equal(adapted_linear(x.T.contiguous().T, *rest, 1.0), expected)
    turned = rest[0].T.contiguous().T  # by the reference
    assert_rounded_once(adapted_linear(x, turned, *rest[1:], 1.0), exactly(x, *rest, 1.0))
    assert adapted_linear(x[:0], *rest, 1.0).shape == (0, 10)


def test_no_gradient():
    x, *rest = case(3, 8, 4, 2)
    assert not adapted_linear(x.requires_grad_(), *rest, 1.0).requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(2, 3)}, r"x must have shape \[..., 4\], got \[2, 3\]"),
        ({"weight": torch.ones(4)}, r"weight must have shape \[outputs, inputs\], got \[4\]"),
        ({"bias": torch.ones(4)}, r"bias must have shape \[5\], got \[4\]"),
        ({"down": torch.ones(2, 3)}, r"down must have shape \[rank, 4\], got \[2, 3\]"),
        ({"up": torch.ones(5, 3)}, r"up must have shape \[5, 2\], got \[5, 3\]"),
        ({"up": None}, "down and up must both be given, or neither of them"),
    ],
)
def test_wrong_arguments(changed, message):
    given = {
        "x": torch.ones(2, 4),
        "weight": torch.ones(5, 4),
        "bias": None,
        "down": torch.ones(2, 4),
        "up": torch.ones(5, 2),
    }
    with pytest.raises(ValueError, match=f"^{message}$"):
        adapted_linear(**{**given, **changed})


@HERE
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "rank"), [(1, 2, 2, 2), (25, 70, 48, 6), (130, 34, 10, 80)]
)
def test_changes_and_gradients(rows, inputs, outputs, rank):
    x, weight, bias, down, up = case(rows, inputs, outputs, rank, bias=True)
    grad = torch.randn(rows, outputs).bfloat16()
    assert trains_here(x, weight, down, up)
    out, change = with_change(x, weight, bias, down, up, 0.5)
    assert torch.equal(out, adapted_linear(x, weight, bias, down, up, 0.5))
    assert_rounded_once(change, 0.5 * (x.double() @ down.double().T))
    of_x, thin = gradients(grad, weight, down, up, 0.5)
    assert_rounded_once(thin, 0.5 * (grad.double() @ up.double()))
    assert_rounded_once(of_x, grad.double() @ weight.double() + thin.double() @ down.double())


def test_odd_sizes_are_not_trained_here():
    x, weight, _, down, up = case(3, 8, 5, 2)
    assert not trains_here(x, weight, down, up)
    assert not trains_here(x.float(), weight[:4].float(), down.float(), up[:4].float())


@HERE
def test_threads_make_the_same_gradients(set_threads):
    _, weight, _, down, up = case(1, 128, 512, 16)
    grad = torch.randn(500, 512).bfloat16()
    made = []
    for threads in (1, 3):
        set_threads(threads)
        of_x, thin = gradients(grad, weight, down, up, 0.7)
        made.append((of_x, thin, gradient_of_up(grad, thin), gradient_of_down(thin, grad)))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


@HERE
@pytest.mark.parametrize(
    ("rows", "columns", "rank"),
    [
        (0, 6, 2),  # nothing to sum
        (1, 2, 2),  # a row without another beside it
        (7, 70, 16),  # lanes that are not full
        (65, 130, 18),  # more rows than are transposed together, and more of the adapter
        (130, 64, 40),
        (448, 576, 16),
    ],
)
def test_gradients_of_adapters(rows, columns, rank, monkeypatch):
    wide, thin = torch.randn(rows, columns).bfloat16(), torch.randn(rows, rank).bfloat16()
    empty = torch.Tensor.new_empty
    poison = lambda *given, **options: empty(*given, **options).fill_(torch.nan)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "new_empty", poison)
    exact = thin.double().T @ wide.double()
    for made, expected in (
        (gradient_of_down(thin, wide), exact),
        (gradient_of_up(wide, thin), exact.T),
    ):
        assert made.dtype == torch.float32
        torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-4)


@HERE
def test_gradients_of_adapters_keep_what_is_not_finite_apart():
    wide, thin = torch.randn(20, 50).bfloat16(), torch.randn(20, 6).bfloat16()
    wide[3, 41] = torch.inf
    thin[7, 4] = torch.nan
    lost = torch.zeros(6, 50, dtype=torch.bool)
    lost[:, 41] = lost[4] = True
    assert torch.equal(gradient_of_down(thin, wide).isfinite(), ~lost)
    assert torch.equal(gradient_of_up(wide, thin).isfinite(), ~lost.T)
