import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clara.backbone import chunked_head
from clara.backbone.cross_entropy import (
    _cross_entropy,
    _cross_entropy_by_blocks,
    head_cross_entropy,
)


def made(rows, width, vocabulary, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, width, generator=generator, dtype=dtype))
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return head, hidden, targets


@pytest.mark.parametrize("rows", [1, 2, 7, 30])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 24])
@pytest.mark.parametrize("train_head", [False, True])
def test_loss_and_gradients_of_chunks(monkeypatch, rows, chunk, train_head):
    monkeypatch.setattr(chunked_head, "CHUNK_LOGITS", chunk)
    head, hidden, targets = made(rows, 5, 11)
    head.weight.requires_grad_(train_head)
    loss = head_cross_entropy(head, hidden, targets)
    wanted = cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    inputs = [hidden, head.weight] if train_head else [hidden]
    ours = torch.autograd.grad(3 * loss, inputs)
    theirs = torch.autograd.grad(3 * wanted, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_position_at_all():
    head, hidden, targets = made(0, 5, 11)
    loss = head_cross_entropy(head, hidden, targets)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.shape == (0, 5)


def test_without_gradients_nothing_is_kept():
    head, hidden, targets = made(9, 5, 11)
    with torch.no_grad():
        loss = head_cross_entropy(head, hidden, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(
        loss.double(), cross_entropy(head(hidden), targets, reduction="sum"), rtol=1e-5, atol=1e-5
    )


def test_a_head_with_a_bias_is_called():
    head, hidden, targets = made(9, 5, 11, torch.float32)
    biased = nn.Linear(5, 11)
    loss = head_cross_entropy(biased, hidden, targets)
    wanted = cross_entropy(biased(hidden), targets, reduction="sum")
    assert torch.equal(loss, wanted)
    wrapped = nn.Sequential(head, nn.Tanh())
    loss = head_cross_entropy(wrapped, hidden, targets)
    assert torch.equal(loss, cross_entropy(wrapped(hidden), targets, reduction="sum"))


def test_logits_far_apart():
    head, hidden, targets = made(6, 4, 9, torch.float32)
    loss = head_cross_entropy(head, 1e4 * hidden, targets)
    wanted = cross_entropy(head(1e4 * hidden), targets, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-3)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isfinite().all()


def test_sixteen_bit_hidden_states_are_reduced_in_float32():
    head, hidden, targets = made(40, 16, 300, torch.float32)
    low = nn.Linear(16, 300, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        low.weight.copy_(head.weight)
    rounded = hidden.detach().bfloat16().requires_grad_()
    loss = head_cross_entropy(low, rounded, targets)
    assert loss.dtype == torch.float32
    exact = nn.Linear(16, 300, bias=False, dtype=torch.float64)
    with torch.no_grad():
        exact.weight.copy_(low.weight)
    states = rounded.detach().double().requires_grad_()
    wanted = cross_entropy(exact(states), targets, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-2)
    (ours,) = torch.autograd.grad(loss, rounded)
    (theirs,) = torch.autograd.grad(wanted, states)
    assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [1, 1000, 1 << 18])
def test_blocks_of_rows_are_what_all_rows_are(monkeypatch, block, dtype):
    """The gradient takes the place of the logits."""
    monkeypatch.setattr("clara.backbone.cross_entropy._BLOCK_LOGITS", block)
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(9, 300, generator=generator)).to(dtype)
    targets = torch.randint(300, (9,), generator=generator)
    whole, of_whole = _cross_entropy(logits.clone(), targets)
    total, gradient = _cross_entropy_by_blocks(logits, targets)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)
    assert gradient() is logits
    expected = of_whole()
    allowed = max(torch.finfo(dtype).eps, 1e-5) * expected.abs().max()
    assert (logits.float() - expected).abs().max() <= allowed
