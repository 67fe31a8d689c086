"""`torch.func`, `torch.vmap` and forward mode: right values, or one line that says what to do."""

import pytest
import torch
from torch.autograd import forward_ad

import clara_kernels

QUERY, MEMORY = torch.randn(2, 8), torch.randn(2, 3, 8)
SCORES = torch.rand(2, 3)
BOUNDS = torch.tensor([0, 4, 9], dtype=torch.int32)
K, V = torch.randn(9, 2, 4), torch.randn(9, 2, 4)


def select(scores):
    return clara_kernels.select_topk(scores, MEMORY, 2, temperature=0.5)[0]


def rank(query):
    return clara_kernels.rank_and_select(query, MEMORY, 2, temperature=0.5)[0]


DIFFERENTIABLE = {
    "sparsemax": (clara_kernels.sparsemax, SCORES),
    "cosine_scores": (lambda q: clara_kernels.cosine_scores(q, MEMORY), QUERY),
    "select_topk": (select, SCORES),
    "rank_and_select": (rank, QUERY),
    "memory_alignment_loss": (
        lambda hidden: clara_kernels.memory_alignment_loss(hidden, BOUNDS, 2),
        torch.randn(9, 6),
    ),
    "memory_attention": (
        lambda q: clara_kernels.memory_attention(q, K, V, BOUNDS, 2, window=3),
        torch.randn(9, 2, 4),
    ),
}
OTHERS = {
    "quantize_memory": (lambda x: clara_kernels.quantize_memory(x)[1], QUERY),
    "cosine_topk": (lambda q: clara_kernels.cosine_topk(q, MEMORY[0], 2)[0], QUERY),
    "cosine_rerank": (
        lambda q: clara_kernels.cosine_rerank(
            q, MEMORY.flatten(0, 1), 2, offsets=torch.tensor([0, 3, 6], dtype=torch.int32)
        )[0],
        QUERY,
    ),
    "merge_topk": (
        lambda s: clara_kernels.merge_topk([s, s + 1], [torch.arange(3).expand(2, 3)] * 2, 2)[0],
        SCORES,
    ),
}
TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(lambda y: f(y).sum()))(x[None]),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_that_an_operator_does_not_have_are_refused(name, transform):
    with pytest.raises(RuntimeError, match=f"{name} must be differentiated by backward") as caught:
        transform(*DIFFERENTIABLE[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name):
    function, x = DIFFERENTIABLE[name]
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match=f"{name} must be differentiated by backward"):
            function(forward_ad.make_dual(x, torch.ones_like(x)))
        function(x)  # which has no tangent


def low_attention(q):
    """In bfloat16, whose gradient is compiled where the processor has it fast."""
    k, v = K.bfloat16(), V.bfloat16()
    return clara_kernels.memory_attention(q.bfloat16(), k, v, BOUNDS, 2)


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, "memory_attention in bfloat16"])
def test_a_second_derivative_is_refused(name):
    """Also where the first one does not depend on a tensor with a gradient, as of a plain sum."""
    low = {"memory_attention in bfloat16": (low_attention, torch.randn(9, 2, 4))}
    function, x = (DIFFERENTIABLE | low)[name]
    x = x.clone().requires_grad_()
    out = function(x)
    operator = name.partition(" ")[0]
    for result in (out.sum(), out.square().sum()):
        (first,) = torch.autograd.grad(result, x, create_graph=True)
        with pytest.raises(RuntimeError, match=f"^{operator} can be differentiated once, not "):
            (out.sum() + first.square().sum()).backward(retain_graph=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *OTHERS])
def test_vmap_computes_what_a_loop_does(name):
    function, x = (DIFFERENTIABLE | OTHERS)[name]
    batch = torch.stack([x, 0.5 * x + 0.1, x.flip(0)]).requires_grad_(name in DIFFERENTIABLE)
    looped = torch.stack([function(each) for each in batch])
    mapped = torch.vmap(function)(batch)
    torch.testing.assert_close(mapped, looped)
    if name in DIFFERENTIABLE:
        weights = torch.randn_like(looped)
        (expected,) = torch.autograd.grad(looped, batch, weights)
        (found,) = torch.autograd.grad(mapped, batch, weights)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_other_tensors_inside_a_transform_may_be_used(name):
    function, x = DIFFERENTIABLE[name]
    found = torch.func.grad(lambda y: (y * function(x).sum()).sum())(torch.ones(2))
    torch.testing.assert_close(found, function(x).sum().expand(2))
