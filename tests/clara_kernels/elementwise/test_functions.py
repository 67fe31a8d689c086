"""Norms, gated activations and rotations: values and gradients against float64."""

from __future__ import annotations

import pytest
import torch

from clara_kernels.build import native
from clara_kernels.elementwise import (
    gated_activation,
    reference,
    rms_norm,
    rms_norm_of_sum,
    rotate,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""Relative to the largest value; bfloat16's is half a step, and a little for two roundings."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def leaf(*shape, dtype, scale=1.0):
    return (torch.randn(shape) * scale).to(dtype).requires_grad_()


def wide(*leaves):
    return [x.detach().double().requires_grad_() for x in leaves]


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    error = (actual.detach().double() - expected.detach()).abs().max()
    assert error <= ROUNDING[actual.dtype] * expected.abs().max()


def backward(outputs, doubles, leaves, double_leaves):
    """Compare gradients of leaves for random gradients of the outputs."""
    upstream = [torch.randn_like(each) for each in outputs]
    torch.autograd.backward(list(outputs), upstream)
    torch.autograd.backward(list(doubles), [each.double() for each in upstream])
    for one, double in zip(leaves, double_leaves, strict=True):
        assert one.grad.dtype == one.dtype
        assert_close(one.grad, double.grad)


@pytest.fixture(params=["avx512", "avx2", "sse2", "neon"])
def instructions(request, monkeypatch):
    if request.param not in native.build_info()["simd_available"]:
        pytest.skip(f"this processor or build has no {request.param}")
    monkeypatch.setenv("CLARA_SIMD", request.param)


@pytest.mark.usefixtures("instructions")
@DTYPES
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 37), (3, 2, 48), (2, 1)])
def test_norm_of_sum(dtype, weight_dtype, shape):
    x, delta = leaf(*shape, dtype=dtype, scale=3), leaf(*shape, dtype=dtype)
    weight = (torch.rand(shape[-1]) + 0.5).to(weight_dtype)
    total, normed = rms_norm_of_sum(x, delta, weight, 1e-5)
    torch.testing.assert_close(total, x + delta, rtol=0, atol=0)
    assert normed.dtype == torch.promote_types(dtype, weight_dtype)
    (middle,) = wide(total)
    expected = reference.rms_norm(middle, weight.double(), 1e-5, torch.float64)
    assert_close(normed, expected)
    upstream = torch.randn_like(total), torch.randn_like(normed)
    torch.autograd.backward([total, normed], upstream)
    expected.backward(upstream[1].double())
    for each in (x, delta):
        assert each.grad.dtype == dtype
        assert_close(each.grad, middle.grad + upstream[0].double())


@pytest.mark.usefixtures("instructions")
@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("size", [1, 37, 256])
def test_gated_activation(dtype, activation, size):
    leaves = leaf(2, size, dtype=dtype, scale=4), leaf(2, size, dtype=dtype)
    doubles = wide(*leaves)
    made = gated_activation(*leaves, activation)
    expected = reference.gated_activation(*doubles, activation)
    assert_close(made, expected)
    backward([made], [expected], leaves, doubles)


@pytest.mark.usefixtures("instructions")
@DTYPES
@pytest.mark.parametrize("result", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [2, 12, 64, 70])
def test_rotation(dtype, result, head_dim):
    x = leaf(2, 3, 4, head_dim, dtype=dtype)
    angles = torch.randn(2, 3, head_dim, dtype=torch.float64) * 3  # of the halves different ones
    doubles = wide(x)
    # What bfloat16 angles are is what the float64 result is of.
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    made = rotate(x, cosines, sines, dtype=result)
    expected = reference.rotate(doubles[0], cosines.double(), sines.double(), torch.float64)
    assert made.dtype == result
    assert_close(made, expected)
    backward([made], [expected], [x], doubles)


@DTYPES
def test_a_norm_of_views_and_of_what_has_no_delta(dtype):
    packed = leaf(4, 6, 10, dtype=dtype)
    view = packed.transpose(0, 1)
    weight = torch.rand(10)
    same, normed = rms_norm_of_sum(view, None, weight, 1e-6)
    assert same.data_ptr() == packed.data_ptr()
    (double,) = wide(packed)
    turned = double.transpose(0, 1)
    backward(
        [same, normed],
        [turned * 1, reference.rms_norm(turned, weight.double(), 1e-6, torch.float64)],
        [packed],
        [double],
    )


@DTYPES
def test_a_gradient_of_one_output_alone(dtype):
    weight = torch.ones(8)
    for kept in (0, 1):
        x, delta = leaf(3, 8, dtype=dtype), leaf(3, 8, dtype=dtype)
        doubles = wide(x, delta)
        exact = doubles[0] + doubles[1]
        # The norm is of the sum as it is rounded.
        total = exact + ((x + delta).detach() - exact.detach())
        expected = total, reference.rms_norm(total, weight.double(), 1e-6, torch.float64)
        made = rms_norm_of_sum(x, delta, weight, 1e-6)
        upstream = torch.randn(3, 8).to(made[kept].dtype)
        made[kept].backward(upstream)
        expected[kept].backward(upstream.double())
        assert_close(x.grad, doubles[0].grad)
        assert_close(delta.grad, doubles[1].grad)


def test_a_sum_of_two_dtypes_is_what_torch_makes_of_it():
    x, delta = leaf(3, 8, dtype=torch.float32), leaf(3, 8, dtype=torch.bfloat16)
    total, normed = rms_norm_of_sum(x, delta, torch.ones(8), 1e-6)
    torch.testing.assert_close(total, x + delta, rtol=0, atol=0)
    normed.sum().backward()
    assert delta.grad.dtype == torch.bfloat16
    assert x.grad.any()


def test_float64_gradients_are_those_of_finite_differences():
    x, y = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True).unbind()
    weight, angles = torch.rand(8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    turn = angles.cos(), angles.sin()
    check = torch.autograd.gradcheck
    assert check(lambda a, b: rms_norm_of_sum(a, b, weight, 1e-6), (x, y))
    assert check(lambda a: rotate(a[:, None], *turn), (x,))
    for activation in ("silu", "gelu_tanh"):
        assert check(lambda a, b, name=activation: gated_activation(a, b, name), (x, y))


def test_extreme_gates_are_finite_and_nan_stays_nan():
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, torch.nan])
    for activation in ("silu", "gelu_tanh"):
        made = gated_activation(gate, torch.ones(8), activation)
        torch.testing.assert_close(made[:7], gate[:7].clamp(min=0), rtol=1e-6, atol=1e-6)
        assert made[7].isnan()
        assert gated_activation(gate.bfloat16(), torch.ones(8).bfloat16(), activation)[7].isnan()


@pytest.mark.usefixtures("instructions")
@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_infinite_gates_make_what_torch_makes_of_them(dtype, activation):
    """Beside float64, in which the powers of gates like -1e30 are finite in PyTorch as well."""
    values = [-torch.inf, torch.inf, -1e30, 1e30, -3e38, -87.1, -86.9, torch.nan, 0.5]
    gate = torch.tensor(values * 4).to(dtype).requires_grad_()  # whole vectors, and a part of one
    up = leaf(len(gate), dtype=dtype)
    doubles = wide(gate, up)
    made = gated_activation(gate, up, activation)
    expected = reference.gated_activation(*doubles, activation)
    made.sum().backward()
    expected.sum().backward()
    pairs = [
        (made, expected),
        *((a.grad, b.grad) for a, b in zip((gate, up), doubles, strict=True)),
    ]
    for found, wanted in pairs:
        torch.testing.assert_close(
            found.double(), wanted, rtol=2 * ROUNDING[dtype], atol=1e-6, equal_nan=True
        )


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows(threads, set_threads):
    x, weight = torch.randn(1001, 600), torch.rand(600)
    alone = rms_norm(x, weight, 1e-6)
    set_threads(threads)
    assert torch.equal(rms_norm(x, weight, 1e-6), alone)


def test_no_rows_are_no_rows():
    x = torch.zeros(0, 8, requires_grad=True)
    rms_norm(x, torch.ones(8), 1e-6).sum().backward()
    assert x.grad.shape == (0, 8)
    assert gated_activation(x, x, "silu").shape == (0, 8)
    assert rotate(torch.zeros(0, 2, 8), torch.zeros(0, 8), torch.zeros(0, 8)).shape == (0, 2, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: rms_norm(x, torch.ones(3), 1e-6), r"weight must have shape \[4\], got \[3\]"),
        (lambda x: rms_norm_of_sum(x, x[:1], torch.ones(4), 1e-6), "delta must have shape"),
        (lambda x: gated_activation(x, x[:1], "silu"), "up must have shape"),
        (lambda x: gated_activation(x, x, "relu"), "activation must be one of 'silu', 'gelu_tanh'"),
        (lambda x: rotate(x[:, None, :3], x, x), "an even head_dim"),
        (lambda x: rotate(x[:, None], x[:1], x), "cosines must have shape"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 4))
