import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import clara_kernels
from clara_kernels import builds, dispatch
from clara_kernels.dispatch import (
    computed_by,
    cpu_tensors_use,
    declare,
    may_read,
    needs_no_dispatcher,
    register_gradient,
    scalar_tensor,
)


def named(name):
    return lambda x: torch.full_like(x, name)


@pytest.fixture(scope="module")
def operator():
    """An operator whose result tells which implementation ran: 1 reference, 2 cpu, 3 kernels."""
    declare(
        "test_which",
        "(Tensor x) -> Tensor",
        fake=torch.empty_like,
        reference=named(1),
        cpu=named(2),
        triton="builds:which",
    )
    declare("test_plain", "(Tensor x) -> Tensor", fake=torch.empty_like, reference=named(1))
    return torch.ops.clara.test_which


def test_the_implementation_of_cpu_tensors(operator, monkeypatch):
    monkeypatch.setattr(builds, "which", named(3), raising=False)
    dispatch._launcher.cache_clear()
    x = torch.zeros(2)
    assert operator(x).tolist() == [2, 2]
    with cpu_tensors_use("reference"):
        assert operator(x).tolist() == [1, 1]
        with cpu_tensors_use("triton"):
            assert operator(x).tolist() == [3, 3]
            assert torch.ops.clara.test_plain(x).tolist() == [1, 1]  # has no other
        assert operator(x).tolist() == [1, 1]
    assert operator(x).tolist() == [2, 2]
    assert torch.ops.clara.test_plain(x).tolist() == [1, 1]
    dispatch._launcher.cache_clear()


def test_the_choice_ends_with_an_error(operator):
    with pytest.raises(ZeroDivisionError), cpu_tensors_use("reference"):
        raise ZeroDivisionError
    assert operator(torch.zeros(1)).tolist() == [2]


def test_there_are_three_implementations():
    with (
        pytest.raises(ValueError, match=r"must be one of .*'triton'\), got 'cuda'"),
        cpu_tensors_use("cuda"),
    ):
        pass


def test_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with (
        pytest.raises(RuntimeError, match="only with TRITON_INTERPRET=1"),
        cpu_tensors_use("triton"),
    ):
        pass


def test_computed_by(operator, monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert computed_by("test_which") == {"cpu": "cpu", "cuda": "triton"}
    assert computed_by("test_plain") == {"cpu": "reference", "cuda": "reference"}
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert computed_by("test_which") == {"cpu": "cpu", "cuda": "reference"}


def test_autocast_is_off_inside():
    def product(x):
        return x @ x

    declare("test_product", "(Tensor x) -> Tensor", fake=torch.empty_like, reference=product)
    x = torch.randn(8, 8)
    expected = product(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert torch.equal(torch.ops.clara.test_product(x), expected)


@pytest.fixture(scope="module")
def scaled():
    """Two products of an optional tensor by a number, of which the first and the last can be
    differentiated; its backward records what it is called with."""
    calls = []

    def forward(x, y, factor):
        other = torch.ones_like(x) if y is None else y
        return x * factor, torch.zeros(1), other * factor

    def backward(grad_x, grad_y, x, y, factor, need_x, need_y):
        calls.append((grad_x is None, grad_y is None, y is None, factor, need_x, need_y))
        nothing = x.new_empty(0)
        first = nothing if grad_x is None else grad_x * factor
        return first, nothing if grad_y is None else grad_y * factor

    declare(
        "test_scaled",
        "(Tensor x, Tensor? y, float factor) -> (Tensor, Tensor, Tensor)",
        fake=forward,
        reference=forward,
    )
    declare(
        "test_scaled_backward",
        "(Tensor? grad_x, Tensor? grad_y, Tensor x, Tensor? y, float factor, bool need_x, "
        "bool need_y) -> (Tensor, Tensor)",
        fake=backward,
        reference=backward,
    )
    register_gradient(
        "test_scaled", lambda inputs, _: inputs, gradients=2, outputs=(0, 2), asks=True
    )
    return torch.ops.clara.test_scaled, calls


def test_a_gradient_is_computed_by_the_backward_operator(scaled):
    operator, calls = scaled
    calls.clear()
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    first, hidden, last = operator(x, y, 2.0)
    assert (first.requires_grad, hidden.requires_grad, last.requires_grad) == (True, False, True)
    (first.sum() + 3 * last.sum()).backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([2.0] * 3, [6.0] * 3)
    assert calls == [(False, False, False, 2.0, True, True)]


def test_gradients_that_are_missing_or_not_needed(scaled):
    operator, calls = scaled
    calls.clear()
    x, y = torch.ones(3, requires_grad=True), torch.ones(3)
    operator(x, y, 2.0)[0].sum().backward()
    operator(x, None, 4.0)[0].sum().backward()
    assert x.grad.tolist() == [6.0] * 3
    assert y.grad is None
    assert calls == [(False, True, False, 2.0, True, False), (False, True, True, 4.0, True, False)]


@pytest.mark.gpu
def test_the_implementation_of_gpu_tensors(operator, monkeypatch):
    monkeypatch.setattr(builds, "which", named(3), raising=False)
    dispatch._launcher.cache_clear()
    x = torch.zeros(2, device="cuda")
    assert operator(x).tolist() == [3, 3]
    assert operator(x.double()).tolist() == [1, 1]
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert operator(x).tolist() == [1, 1]
    dispatch._launcher.cache_clear()


def test_a_number_becomes_a_tensor():
    cpu = torch.device("cpu")
    one = scalar_tensor(0.5, torch.float32, cpu)
    assert (one.item(), one.dtype, one.dim()) == (0.5, torch.float32, 0)
    leaf = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    other = scalar_tensor(leaf, torch.float32, cpu)
    assert (other.item(), other.dtype, other.requires_grad) == (0.25, torch.float32, False)


def test_values_are_read_on_the_cpu_only():
    assert may_read(torch.zeros(1))
    assert not may_read(torch.zeros(1, device="meta"))
    seen = []

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        seen.append(may_read(x))
        return x + 1

    compiled(torch.zeros(1))
    assert seen == [False]


def test_when_an_operator_needs_no_dispatcher():
    x, trained = torch.randn(2), torch.randn(2, requires_grad=True)
    assert needs_no_dispatcher(x)
    assert not needs_no_dispatcher(x, trained)
    with torch.no_grad():
        assert needs_no_dispatcher(x, trained)
    assert not needs_no_dispatcher(x, torch.empty(2, device="meta"))
    assert not needs_no_dispatcher(x, torch.nn.Parameter(x))
    with cpu_tensors_use("cpu"):
        assert not needs_no_dispatcher(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not needs_no_dispatcher(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not needs_no_dispatcher(x)
    with FakeTensorMode():
        assert not needs_no_dispatcher(x)


def test_results_without_the_dispatcher_are_those_with_it():
    torch.manual_seed(0)
    q, k, v = torch.randn(9, 4, 32), torch.randn(9, 2, 32), torch.randn(9, 2, 32)
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    expected = clara_kernels.memory_attention(q.clone().requires_grad_(), k, v, bounds, 2)
    assert torch.equal(clara_kernels.memory_attention(q, k, v, bounds, 2), expected)
