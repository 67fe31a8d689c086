"""Random inputs of `select_topk`, what it means built whole, and how results are compared."""

from itertools import product

import pytest
import torch
from comparison import assert_close_to, offsets_of

from clara_kernels import select_topk
from clara_kernels.dispatch import cpu_tensors_use
from clara_kernels.sparsemax import sparsemax

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
RELAXATIONS = ["softmax", "sparsemax"]
MEANINGS = [
    {"relaxation": relaxation, "mask": mask}
    for relaxation, mask in product(RELAXATIONS, ("exact", "reference"))
]
EACH = pytest.mark.usefixtures("implementation")


def dense_straight_through(scores, memory, k, temperature, relaxation, mask, noise=None):
    """Z = Zhard + Zsoft - stopgrad(Zsoft) built whole, differentiated by autograd, in float64.

    Memory is differentiated through Zhard only, as the operator specifies.
    """
    z = scores / temperature
    if noise is not None:
        z = z + noise
    relax = {"softmax": lambda x: x.softmax(-1), "sparsemax": sparsemax}[relaxation]
    taken = torch.zeros_like(z)
    slots, soft_slots, order = [], [], []
    for _ in range(k):
        best = z.detach().masked_fill(taken > 0, -torch.inf).argmax(-1)
        hard = torch.nn.functional.one_hot(best, z.shape[1]).to(z.dtype)
        left = z.masked_fill(taken > 0, -torch.inf)
        soft = relax(left if mask == "exact" else z + torch.log(1 - taken + 1e-8))
        flat = memory.flatten(2)
        value = torch.einsum("bn,bnd->bd", hard, flat)
        surrogate = torch.einsum("bn,bnd->bd", soft - soft.detach(), flat.detach())
        slots.append((value + surrogate).unflatten(1, memory.shape[2:]))
        soft_slots.append(soft)
        order.append(best)
        taken = taken + hard
    return torch.stack(slots, 1), torch.stack(order, 1), torch.stack(soft_slots, 1)


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def randoms(lengths, width, scores=torch.float32, memory=torch.float32, device="cpu"):
    """Scores, memory and offsets; dense, without offsets, for one length of all."""
    first = (torch.rand(sum(lengths), device=device) - 0.5).to(scores)
    second = torch.randn(sum(lengths), width, device=device).to(memory)
    if len(set(lengths)) == 1:
        shape = len(lengths), lengths[0]
        return first.view(shape), second.view(*shape, width), None
    return first, second, offsets_of(lengths, device)


def everything(scores, memory, offsets, k, grad, grad_p, options):
    """Indices, selected memory, p, the gradients of memory and scores, and of scores through p."""
    scores, memory = leaves(scores, memory)
    selected, indices, p = select_topk(
        scores, memory, k, offsets=offsets, return_probabilities=True, **options
    )
    grads = torch.autograd.grad(selected, (memory, scores), grad.to(memory.dtype), True)
    (through_p,) = torch.autograd.grad(p, scores, grad_p.to(p.dtype))
    return indices, selected.detach(), p.detach(), *grads, through_p


def largest_product(grad, memory, offsets):
    """Of the gradient of a slot with a candidate of its question."""
    memory, questions = memory.double().flatten(0, -2), len(grad)
    counts = len(memory) // questions if offsets is None else offsets.diff()
    question = torch.arange(questions, device=grad.device)
    question = question.repeat_interleave(torch.as_tensor(counts, device=grad.device))
    return torch.einsum("rkd,rd->rk", grad.double()[question], memory).abs().max().item()


def check(scores, memory, offsets, k, **options):
    """All results against float64, allowed twice the error of plain PyTorch."""
    options = {"temperature": 0.2, "seed": 9, **options}
    questions = len(scores) if offsets is None else len(offsets) - 1
    shape = (questions, k, scores.shape[-1]) if offsets is None else (k, len(scores))
    grad = torch.randn(questions, k, memory.shape[-1], device=scores.device).to(memory.dtype)
    grad_p = torch.randn(shape, device=scores.device)
    rest = (offsets, k, grad, grad_p, options)
    found = everything(scores, memory, *rest)
    with cpu_tensors_use("reference"):
        plain = everything(scores, memory, *rest)
        exact = everything(scores.double(), memory.double(), *rest)
    assert all(one.dtype == other.dtype for one, other in zip(found, plain, strict=True))
    # What is copied is not rounded.
    for one, other in zip(found[:2] + found[3:4], exact[:2] + exact[3:4], strict=True):
        assert torch.equal(one.to(other.dtype), other)
    p, exact_p = found[2], exact[2]
    assert_close_to(p, exact_p, plain[2], scale=1.0)
    # A candidate on the edge of sparsemax's support may fall on either side of it.
    edge = (p > 0) != (exact_p > 0)
    assert (exact_p[edge] < 1e-5).all()
    if memory.numel() == 0 or edge.any():
        return
    scales = largest_product(grad, memory, offsets), grad_p.abs().max().item()
    for *results, scale in zip(found[4:], exact[4:], plain[4:], scales, strict=True):
        assert_close_to(*results, scale=scale / options["temperature"])


SHAPES = [
    ([1], 1, 1),
    ([7, 7], 33, 7),  # k = N, no 16-byte rows
    ([5, 5, 5], 48, 3),
    ([3, 3], 33, 5),  # k > N
    ([3, 0, 9], 33, 3),
    ([6, 0, 40], 32, 4),
    ([36, 0], 16, 33),  # several tiles of slots, and an order found beforehand
    ([300], 16, 2),  # several blocks of candidates
    ([150, 2, 0], 16, 9),
]


def opchecks(scores, memory, offsets, seed, needs, *meaning, **checks):
    """opcheck of all four operators."""
    operators, memory = torch.ops.clara, memory.flatten(0, -2)
    options = (torch.tensor(0.3, device=scores.device), seed, *meaning)
    arguments = (*leaves(scores, memory), offsets, 2, *options)
    torch.library.opcheck(operators.select_topk.default, arguments, **checks)
    selected, indices = operators.select_topk(scores, memory, offsets, 2, *options)
    arguments = (torch.randn_like(selected), scores, memory, indices, offsets, *options, *needs)
    torch.library.opcheck(operators.select_topk_backward.default, arguments, **checks)
    arguments = (*leaves(scores), indices, offsets, *options)
    torch.library.opcheck(operators.slot_probabilities.default, arguments, **checks)
    grad = torch.randn(2, scores.numel(), device=scores.device)
    arguments = (grad, scores, indices, offsets, *options)
    torch.library.opcheck(operators.slot_probabilities_backward.default, arguments, **checks)
