"""The kernels of `select_topk` against float64, in the interpreter."""

from importlib import import_module
from itertools import product

import pytest
import torch
from comparison import launches, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import (
    EACH,
    FLOATS,
    MEANINGS,
    RELAXATIONS,
    SHAPES,
    check,
    leaves,
    randoms,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clara_kernels import select_topk
from clara_kernels.dispatch import cpu_tensors_use
from clara_kernels.select_topk.options import Options


@pytest.mark.parametrize(
    ("shape", "relaxation"),
    [*product(SHAPES[:6], RELAXATIONS), *product(SHAPES[6:], RELAXATIONS[1:])],
)
def test_kernels(shape, relaxation):
    lengths, width, k = shape
    mask = "exact" if (relaxation == "softmax") == (width == 33) else "reference"
    with cpu_tensors_use("triton"), poisoned("select_topk"):
        check(*randoms(lengths, width), k, relaxation=relaxation, mask=mask)
        if len(lengths) == 3 and sum(lengths) < 20:
            check(*randoms(lengths, width), k, relaxation=relaxation, noise="gumbel")


@EACH
@pytest.mark.parametrize(
    ("scores", "memory"), [pair for pair in product(FLOATS, FLOATS[:2]) if pair != FLOATS[:1] * 2]
)
def test_dtypes(scores, memory):
    check(*randoms([6, 6], 48, scores, memory), 2, temperature=0.02)
    check(*randoms([4, 0, 9], 33, scores, memory), 1, temperature=3.0, **MEANINGS[3])


def test_vectors_in_parts():
    with cpu_tensors_use("triton"), poisoned("select_topk"):
        check(*randoms([2, 2], 8200, memory=torch.float16), 2)
        check(*randoms([2, 0, 1], 5001), 2, relaxation="sparsemax")


@EACH
def test_many_questions():
    lengths = [1, 0, 2] * 100
    scores, memory, offsets = randoms(lengths, 16)
    memory.requires_grad_()
    selected, indices = select_topk(scores, memory, 1, temperature=0.3, offsets=offsets)
    first = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    flat, rows = scores.flatten(), memory.detach().flatten(0, -2)
    best = [
        flat[start : start + length].argmax().item() if length else -1
        for start, length in zip(first.tolist(), lengths, strict=True)
    ]
    assert indices[:, 0].tolist() == best
    taken, filled = first + indices[:, 0], indices[:, 0] >= 0
    assert torch.equal(selected[filled, 0], rows[taken[filled]])
    assert not selected[~filled].any()
    grad = torch.randn(300, 1, 16)
    selected.backward(grad)
    expected = torch.zeros_like(rows).index_add(0, taken[filled], grad[filled, 0])
    assert torch.equal(memory.grad.view(rows.shape), expected)


@settings(deadline=None, max_examples=6)
@given(
    options=st.sampled_from(MEANINGS),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    width=st.integers(1, 70),
    k=st.integers(1, 6),
    memory=st.sampled_from(FLOATS[:2]),
    noise=st.sampled_from([None, "gumbel"]),
    seed=st.integers(0, 2**31),
)
def test_any_shape(options, lengths, width, k, memory, noise, seed):
    torch.manual_seed(seed)
    with cpu_tensors_use("triton"), poisoned("select_topk"):
        check(*randoms(lengths, width, memory=memory), k, noise=noise, seed=seed, **options)


@EACH
@pytest.mark.parametrize("options", MEANINGS)
def test_ties_in_the_gradient(options):
    scores, memory, _ = randoms([40, 40], 16)
    scores = (scores * 6).round() / 6
    scores[0] = 0
    check(scores, memory, None, 5, **options)


@EACH
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("lengths", [[4, 4], [3, 0, 2]])
def test_gradients_that_are_asked_for(needs, lengths):
    *inputs, offsets = randoms(lengths, 33)
    upstream = torch.randn(len(lengths), 2, 33)
    both = leaves(*inputs)
    select_topk(*both, 2, temperature=0.3, offsets=offsets)[0].backward(upstream)
    one = [x.clone().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    select_topk(*one, 2, temperature=0.3, offsets=offsets)[0].backward(upstream)
    for need, found, expected in zip(needs, one, both, strict=True):
        assert torch.equal(found.grad, expected.grad) if need else found.grad is None


def test_wrong_offsets_lead_to_no_other_memory():
    module = import_module("clara_kernels.select_topk.triton")
    scores, memory, _ = randoms([2, 2], 16)
    options = Options(torch.tensor(0.1), None, sparse=False, leaky=False)
    memory = memory.flatten(0, 1)
    expected = module.forward(scores, memory, None, 2, options)[0]
    for wrong in ([0, 2, 900], [-900, 2, 4], [0, 900, 4], [0, 2, -900]):
        offsets = torch.tensor(wrong, dtype=torch.int32)
        selected, indices = module.forward(scores.flatten(), memory, offsets, 2, options)
        assert indices.max() < 4
        if wrong[:2] == [0, 2]:
            assert torch.equal(selected[0], expected[0])


class Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made inside."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for made, returned in zip(tree_leaves(result), function._schema.returns, strict=True):
            if returned.alias_info is None:
                self.total += made.nbytes
        return result


@pytest.mark.parametrize("ragged", [False, True])
def test_memory_needed_is_below_one_per_cent_of_the_candidates(ragged):
    module = import_module("clara_kernels.select_topk.triton")
    batch, count, k, width = 64, 20, 5, 32_768
    scores = torch.empty((batch * count,) if ragged else (batch, count), device="meta")
    memory = torch.empty(batch * count, width, dtype=torch.bfloat16, device="meta")
    offsets = torch.empty(batch + 1, dtype=torch.int32, device="meta") if ragged else None
    seed = torch.empty((), dtype=torch.int64, device="meta")
    options = Options(torch.empty((), device="meta"), seed, sparse=False, leaky=False)
    with launches("select_topk", 90), Allocations() as forward:
        selected, indices = module.forward(scores, memory, offsets, k, options)
    with launches("select_topk", 90), Allocations() as backward:
        inputs = (selected, scores, memory, indices, offsets, options)
        module.backward(*inputs, True, False)
    extra = forward.total - selected.nbytes - indices.nbytes + backward.total
    assert 0 < extra < memory.nbytes / 100
