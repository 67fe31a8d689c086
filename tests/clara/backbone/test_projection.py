"""Layers without adapters are projected by our own product, if nothing is changed in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from clara.backbone import projection
from clara.backbone.projection import is_fast, project
from clara_kernels import build_info

HERE = pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16", reason="this processor or build has no such kernel"
)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(64, 10, dtype=torch.bfloat16)


@pytest.fixture
def made(monkeypatch):
    """Whether our own product was called, once for each call."""
    calls = []
    original = projection.adapted_linear
    monkeypatch.setattr(projection, "adapted_linear", lambda *a: calls.append(1) or original(*a))
    return calls


@HERE
def test_a_plain_layer_without_gradients(layer, made):
    x = torch.randn(2, 5, 64).bfloat16()
    with torch.no_grad():
        actual = project(layer, x)
    assert made
    expected = linear(x.double(), layer.weight.double(), layer.bias.double())
    error = (actual.double() - expected).abs().max()
    assert error <= 2**-8 * expected.abs().max()


def test_gradients_pass(layer, made):
    x = torch.randn(3, 64).bfloat16().requires_grad_()
    project(layer, x).sum().backward()
    assert not made
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1), rtol=0.02, atol=0.02)


@torch.no_grad()
def test_changed_layers_are_called(layer, made):
    x = torch.randn(3, 64).bfloat16()
    expected = linear(x, layer.weight, layer.bias)
    other = Doubled(64, 10, dtype=torch.bfloat16)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(project(other, x), 2 * expected)
    hook = layer.register_forward_hook(lambda module, given, out: out + 1)
    assert torch.equal(project(layer, x), expected + 1)
    hook.remove()
    layer.forward = lambda given: given
    assert project(layer, x) is x
    assert not made
    assert not is_fast(layer)


@torch.no_grad()
def test_other_dtypes_and_autocast(layer, made):
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert project(layer, x).dtype == torch.bfloat16
        assert project(layer, x.bfloat16()).dtype == torch.bfloat16
    layer.float()
    assert torch.equal(project(layer, x), layer(x))
    assert not made


@HERE
@torch.no_grad()
def test_instructions_can_be_left_out(layer, made, monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", "avx512")
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(project(layer, x), layer(x))
    assert not made
