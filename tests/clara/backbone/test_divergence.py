import math

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from clara.backbone import chunked_head
from clara.backbone.divergence import (
    LEAST,
    divergence_of_logits,
    head_divergence,
    most_likely,
)


def made(rows, width, vocabulary, dtype=torch.float64, seed=0):
    """A head, states, and a teacher's logits that differ from those of the head."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, width, generator=generator, dtype=dtype))
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    teacher = 3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return head, hidden, teacher


def dense(logits, teacher, top):
    """The definition, class by class, from probabilities of the whole vocabulary."""
    total = 0.0
    for row, wanted in zip(logits.softmax(1), teacher.softmax(1), strict=True):
        best = sorted(range(len(wanted)), key=lambda i: -wanted[i])[:top]
        others = [i for i in range(len(wanted)) if i not in best]
        for group in [*([i] for i in best), others]:
            q, p = wanted[group].sum(), row[group].sum()
            total = total + q * (q.log() - p.log())
    return total


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("top", [1, 4, 10])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 24])
@pytest.mark.parametrize("train_head", [False, True])
def test_loss_and_gradients_of_chunks(monkeypatch, rows, top, chunk, train_head):
    monkeypatch.setattr(chunked_head, "CHUNK_LOGITS", chunk)
    head, hidden, teacher = made(rows, 5, 11)
    head.weight.requires_grad_(train_head)
    likely = most_likely(teacher, top)
    wanted = dense(head(hidden), teacher, top)
    inputs = [hidden, head.weight] if train_head else [hidden]
    theirs = torch.autograd.grad(3 * wanted, inputs)
    for loss in (
        head_divergence(head, hidden, *likely),
        divergence_of_logits(head(hidden), *likely),
    ):
        torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
        ours = torch.autograd.grad(3 * loss, inputs)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    head, hidden, teacher = made(3, 4, 9)
    likely = most_likely(teacher, 3)
    assert torch.autograd.gradcheck(
        lambda states, weight: head_divergence(_with(head, weight), states, *likely),
        (hidden, head.weight.detach().clone().requires_grad_()),
    )


def _with(head, weight):
    other = nn.Linear(head.in_features, head.out_features, bias=False)
    del other._parameters["weight"]
    other.weight = weight
    return other


def test_the_classes_of_a_teacher():
    _, _, teacher = made(6, 3, 12)
    ids, log_probs = most_likely(teacher, 4)
    probabilities = teacher.softmax(1)
    best, order = probabilities.sort(descending=True)
    assert torch.equal(ids, order[:, :4])
    torch.testing.assert_close(log_probs[:, :4].exp(), best[:, :4])
    torch.testing.assert_close(log_probs[:, 4].exp(), best[:, 4:].sum(1))
    for top in (12, 20):
        with pytest.raises(ValueError, match=f"below the vocabulary's 12 tokens, got {top}"):
            most_likely(teacher, top)


def test_it_is_zero_at_the_teacher_and_at_most_that_of_the_whole_vocabulary():
    head, hidden, teacher = made(20, 6, 30)
    same = head_divergence(head, hidden, *most_likely(head(hidden).detach(), 5))
    assert same.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(same, hidden)
    assert gradient.abs().max() < 1e-12
    whole = kl_div(
        head(hidden).log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="sum"
    )
    found = [head_divergence(head, hidden, *most_likely(teacher, k)).item() for k in (1, 5, 20)]
    assert 0 < found[0] < found[1] < found[2] < whole.item()


@pytest.mark.parametrize("sure", [50.0, 1e4])
def test_probabilities_that_vanish(sure):
    """Of the teacher's other tokens, of the model's, and of the teacher's most likely one."""
    head, hidden, _ = made(3, 4, 9, torch.float32)
    teacher = torch.zeros(3, 9)
    teacher[:, 2] = sure
    ids, log_probs = most_likely(teacher, 2)
    assert log_probs.min() >= LEAST
    loss = head_divergence(head, 300 * hidden, ids, log_probs)
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_no_position_at_all():
    head, hidden, _ = made(0, 5, 11)
    loss = head_divergence(head, hidden, torch.empty(0, 3, dtype=torch.long), torch.empty(0, 4))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.shape == (0, 5)


def test_a_head_with_a_bias_is_called():
    _, hidden, teacher = made(5, 4, 9, torch.float32)
    head = nn.Linear(4, 9)
    with torch.no_grad():
        head.bias.copy_(torch.arange(9.0))
    loss = head_divergence(head, hidden, *most_likely(teacher, 3))
    assert loss.item() == pytest.approx(dense(head(hidden).double(), teacher, 3).item(), rel=1e-5)


def test_sixteen_bit_hidden_states_are_reduced_in_float32():
    head, hidden, teacher = made(12, 16, 200, torch.float32)
    low = nn.Linear(16, 200, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        low.weight.copy_(head.weight)
    rounded = hidden.detach().bfloat16().requires_grad_()
    ids, log_probs = most_likely(teacher.float(), 8)
    loss = head_divergence(low, rounded, ids, log_probs)
    assert loss.dtype == torch.float32
    states = rounded.detach().double().requires_grad_()
    wanted = dense(states @ low.weight.detach().double().T, teacher, 8)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-2)
    (ours,) = torch.autograd.grad(loss, rounded)
    (theirs,) = torch.autograd.grad(wanted, states)
    assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()
    assert math.isfinite(loss.item())
