import math
from itertools import product

import pytest
import torch
from comparison import assert_close_to, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import cosine_scores, rank_and_select, select_topk
from clara_kernels.dispatch import cpu_tensors_use

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [[4, 4, 4], [3, 0, 1, 7], [1]]
OPTIONS = [
    {},
    {"relaxation": "sparsemax", "noise": "gumbel", "seed": 2**63 + 1},
    {"mask": "reference", "noise": "gumbel", "seed": torch.tensor(3)},
]


@pytest.fixture(params=["reference", "cpu", "triton"])
def implementation(request):
    with (
        cpu_tensors_use(request.param),
        poisoned("cosine_scores"),
        poisoned("select_topk"),
    ):
        yield request.param


EACH = pytest.mark.usefixtures("implementation")


def randoms(lengths, trailing, query=torch.float32, memory=torch.float32, device="cpu"):
    """Queries, memory and offsets, dense for one length of all; cosines between 0.1 and 0.9."""
    first = torch.randn(len(lengths), *trailing, device=device)
    near = first.repeat_interleave(torch.tensor(lengths, device=device), 0)
    scale = torch.rand(len(near), *(1 for _ in trailing), device=device) + 0.1
    second = ((near + torch.randn_like(near)) * scale).to(memory)
    if len(set(lengths)) == 1:
        return first.to(query), second.view(len(lengths), lengths[0], *trailing), None
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    return first.to(query), second, offsets


def composition(query, memory, k, *, offsets=None, return_probabilities=False, **options):
    """What `rank_and_select` means."""
    flat = memory.flatten(2 if offsets is None else 1)
    scores = cosine_scores(query.flatten(1), flat, offsets)
    options = {"offsets": offsets, "return_probabilities": return_probabilities, **options}
    selected, indices, *rest = select_topk(scores, memory, k, **options)
    return selected, indices, scores, *rest


def everything(function, inputs, k, grads, needs=(True, True), **options):
    """Outputs, and the gradients that are needed; a None in `grads` gives an output none."""
    query, memory, offsets = inputs
    leaves = [
        each.detach().clone().requires_grad_(need)
        for each, need in zip((query, memory), needs, strict=True)
    ]
    outputs = function(*leaves, k, offsets=offsets, **options)
    differentiable = outputs[0], *outputs[2:]
    pairs = [(each, grad) for each, grad in zip(differentiable, grads) if grad is not None]
    total = sum((each * grad.to(each.dtype)).sum() for each, grad in pairs)
    found = torch.autograd.grad(total, [leaf for leaf in leaves if leaf.requires_grad])
    return *(each.detach() for each in outputs), *found


def random_grads(inputs, k, probabilities=True):
    query, memory, offsets = inputs
    selected = torch.randn(len(query), k, *query.shape[1:], device=query.device)
    shape = memory.shape[:2] if offsets is None else memory.shape[:1]
    scores = torch.randn(shape, device=query.device)
    shape = (len(query), k, shape[1]) if offsets is None else (k, shape[0])
    return selected, scores, torch.randn(shape, device=query.device) if probabilities else None


def check(inputs, k, grads, needs=(True, True), **options):
    """Against float64, allowed twice the error of the same in plain PyTorch."""
    options = {"temperature": 0.3, "return_probabilities": True, **options}
    found = everything(rank_and_select, inputs, k, grads, needs, **options)
    wide = inputs[0].double(), inputs[1].double(), inputs[2]
    with cpu_tensors_use("reference"):
        plain = everything(composition, inputs, k, grads, needs, **options)
        exact = everything(composition, wide, k, grads, needs, **options)
    assert len(found) == len(plain)
    for one, other, sure in zip(found, plain, exact, strict=True):
        assert one.dtype == other.dtype
        if one.is_floating_point():
            # Gradients are sums of products of `grads` with memory, over the temperature.
            scale = 8 * sure.abs().max().item() if sure.numel() else 0.0
            assert_close_to(one, sure, other, scale=max(scale, 8.0))
        else:
            assert torch.equal(one, sure)
    taken = found[1] >= 0
    assert torch.equal(found[0].double(), exact[0])
    assert not found[0][~taken].any()


@EACH
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equals_the_two_operators(lengths, options):
    inputs = randoms(lengths, (2, 24))
    check(inputs, 3, random_grads(inputs, 3), **options)


@EACH
@pytest.mark.parametrize(("query", "memory"), list(product(FLOATS[:2], repeat=2)))
def test_dtypes(query, memory):
    inputs = randoms([3, 1], (33,), query, memory)
    check(inputs, 2, random_grads(inputs, 2))


@EACH
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("given_grads", [(True, False, False), (False, True, False)])
@pytest.mark.parametrize("lengths", LENGTHS[:2])
def test_gradients_that_are_asked_for(lengths, given_grads, needs):
    inputs = randoms(lengths, (17,))
    pairs = zip(random_grads(inputs, 2), given_grads, strict=True)
    check(inputs, 2, [grad if given else None for grad, given in pairs], needs)


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    # Of vectors of one value cosines are 1 or -1 but for rounding, which then orders them.
    trailing=st.lists(st.integers(1, 9), min_size=1, max_size=3).filter(lambda n: math.prod(n) > 1),
    k=st.integers(1, 7),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 2**31),
)
def test_any_shape(lengths, trailing, k, options, seed):
    torch.manual_seed(seed)
    inputs = randoms(lengths, trailing)
    with cpu_tensors_use("cpu"):
        check(inputs, k, random_grads(inputs, k), **options)


@EACH
@pytest.mark.parametrize("lengths", LENGTHS)
def test_cosines_that_rounding_orders(lengths):
    """Of vectors of one value they are 1 or -1: the order is that of the scores returned."""
    query, memory, offsets = randoms(lengths, (1,))
    selected, indices, scores = rank_and_select(query, memory, 3, temperature=0.3, offsets=offsets)
    torch.testing.assert_close(scores.abs(), torch.ones_like(scores))
    of_each = memory.flatten().split(lengths)
    for row, own in enumerate(scores.flatten().split(lengths)):
        order = own.sort(descending=True, stable=True).indices[:3]
        assert indices[row].tolist() == [*order.tolist(), *[-1] * (3 - len(order))]
        assert torch.equal(selected[row, : len(order), 0], of_each[row][order])


@pytest.mark.parametrize("lengths", [[4, 4], [3, 0, 2]])
def test_gradcheck_of_what_depends_on_the_query(lengths):
    query, memory, offsets = randoms(lengths, (5,))
    query, memory = query.double().requires_grad_(), memory.double().requires_grad_()

    def ranked(query, memory):
        options = {"temperature": 0.3, "offsets": offsets, "return_probabilities": True}
        return rank_and_select(query, memory, 2, **options)[2:]

    assert torch.autograd.gradcheck(ranked, (query, memory))


@EACH
def test_layouts():
    query, base = torch.randn(6, 2, 3).transpose(0, 2), torch.randn(4, 6, 2, 3)
    for memory in (base.permute(3, 0, 2, 1), base.permute(3, 0, 2, 1)[:, ::2]):
        grad = torch.randn(3, 2, 2, 6)
        whole = (query.contiguous(), memory.contiguous(), None)
        expected = everything(rank_and_select, whole, 2, (grad,), temperature=0.3)
        found = everything(rank_and_select, (query, memory, None), 2, (grad,), temperature=0.3)
        torch.testing.assert_close(found, expected)
    # One corpus for all questions.
    shared = torch.randn(1, 4, 2, 6, requires_grad=True)
    grad = torch.randn(3, 2, 2, 6)
    rank_and_select(query, shared.expand(3, -1, -1, -1), 2, temperature=0.3)[0].backward(grad)
    each = query, shared.detach().expand(3, -1, -1, -1).contiguous(), None
    expected = everything(rank_and_select, each, 2, (grad,), (False, True), temperature=0.3)
    torch.testing.assert_close(shared.grad, expected[3].sum(0, keepdim=True))


@EACH
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_select_from(shape):
    query = torch.randn(shape[0], 2, 5, requires_grad=True)
    memory = torch.randn(*shape, 2, 5, requires_grad=True)
    selected, indices, scores = rank_and_select(query, memory, 2, temperature=0.1)
    assert selected.shape == (shape[0], 2, 2, 5)
    assert not selected.any()
    assert (indices == -1).all()
    (selected.sum() + scores.sum()).backward()
    assert query.grad.eq(0).all()
    assert memory.grad.shape == memory.shape


@EACH
def test_bad_values_are_refused_where_they_can_be_seen():
    query, memory, _ = randoms([3, 3], (4,))
    memory[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="query_memory and memory must be finite, got scores"):
        rank_and_select(query, memory, 2, temperature=0.1)


@EACH
def test_autocast_does_not_lower_the_precision():
    inputs = randoms([3, 3], (40,))
    grads = random_grads(inputs, 2, probabilities=False)
    expected = everything(rank_and_select, inputs, 2, grads, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything(rank_and_select, inputs, 2, grads, temperature=0.1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def opchecks(query, memory, offsets, seed, **checks):
    operators = torch.ops.clara
    options = (torch.tensor(0.3, device=query.device), seed, False, True)
    leaves = [each.detach().clone().requires_grad_() for each in (query, memory)]
    arguments = (*leaves, offsets, 2, *options)
    torch.library.opcheck(operators.rank_and_select.default, arguments, **checks)
    selected, *saved = operators.rank_and_select(query, memory, offsets, 2, *options)
    rest = (query, memory, *saved, offsets, *options)
    for grads in product((torch.randn_like(selected), None), (torch.randn_like(saved[1]), None)):
        needs = (True, grads[0] is not None)
        backward = operators.rank_and_select_backward.default
        torch.library.opcheck(backward, (*grads, *rest, *needs), **checks)


@pytest.mark.parametrize(("lengths", "seed"), [([3, 3], None), ([2, 0, 1], torch.tensor(4))])
def test_opcheck(lengths, seed):
    opchecks(*randoms(lengths, (6,), memory=torch.float16), seed)


def test_opcheck_of_the_kernels():
    inputs = randoms([2, 0, 1], (6,), memory=torch.float16)
    with cpu_tensors_use("triton"):
        opchecks(*inputs, None, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("backend", "ragged"),
    [
        ("aot_eager", False),
        ("aot_eager", True),
        pytest.param("inductor", True, marks=pytest.mark.slow),
    ],
)
def test_one_compiled_graph_serves_all_lengths_temperatures_and_seeds(backend, ragged):
    torch._dynamo.reset()
    compiled = torch.compile(rank_and_select, fullgraph=True, dynamic=True, backend=backend)
    lengths = [[2, 3, 0, 4], [5, 7, 1], [0, 1, 8, 9, 2]] if ragged else [[3] * 4, [7] * 3, [9] * 5]
    values = [(0.02, 1), (0.5, 2**40), (3.0, 77)]
    for number, (each, (temperature, seed)) in enumerate(zip(lengths, values, strict=True)):
        inputs = randoms(each, (2, 10 + number))
        options = {"temperature": temperature, "noise": "gumbel", "seed": seed}
        arguments = (inputs, 2, random_grads(inputs, 2))
        options |= {"return_probabilities": True}
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            found = everything(compiled, *arguments, **options)
        expected = everything(rank_and_select, *arguments, **options)
        torch.testing.assert_close(found, expected)


QUERY, MEMORY = torch.randn(2, 4, 5), torch.randn(2, 3, 4, 5)
OFFSETS = torch.tensor([0, 1, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_memory": [0.1]}, TypeError, r"query_memory must be a torch\.Tensor, got list"),
        ({"query_memory": QUERY.int()}, TypeError, "query_memory must be floating point"),
        ({"query_memory": QUERY[0, 0]}, ValueError, r"query_memory must have shape \[B, ...\]"),
        ({"memory": MEMORY.long()}, TypeError, r"memory must be floating point, got torch\.int64"),
        (
            {"memory": MEMORY.to("meta")},
            ValueError,
            "memory must be on the device of",
        ),
        (
            {"memory": MEMORY[:1]},
            ValueError,
            r"memory must have shape \[2, N, ...\].* with ... = \[4, 5\], got \[1, 3, 4, 5\]",
        ),
        ({"memory": MEMORY[..., :3]}, ValueError, r"memory must have .*, got \[2, 3, 4, 3\]"),
        ({"memory": MEMORY[0]}, ValueError, r"memory must have .*, got \[3, 4, 5\]"),
        ({"offsets": OFFSETS}, ValueError, r"memory must have shape \[ΣN, ...\]"),
        (
            {"memory": MEMORY[0], "offsets": OFFSETS.long()},
            TypeError,
            r"offsets must be int32, got torch\.int64",
        ),
        (
            {"memory": MEMORY[0], "offsets": OFFSETS[[0, 2]]},
            ValueError,
            r"offsets must have shape \[3\], got \[2\]",
        ),
        (
            {"memory": MEMORY[0, :2], "offsets": OFFSETS},
            ValueError,
            "offsets must end at 2, the rows of memory, got 3",
        ),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0 and finite, got 0.0"),
        ({"relaxation": "hard"}, ValueError, "relaxation must be one of"),
        ({"mask": "none"}, ValueError, "mask must be one of"),
        ({"noise": "gumbel"}, ValueError, "seed must be given"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"query_memory": QUERY, "memory": MEMORY, "k": 2, "temperature": 0.1, **change}
    with pytest.raises(error, match=message):
        rank_and_select(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[20] * 64, [5, 0, 1, 33], [1]])
def test_on_the_gpu(lengths, options, dtype):
    inputs = randoms(lengths, (4, 1024), dtype, dtype, "cuda")
    with poisoned("cosine_scores"), poisoned("select_topk"):
        check(inputs, 5, random_grads(inputs, 5), **{**options, "noise": None})
        outputs = rank_and_select(*inputs[:2], 5, temperature=0.3, offsets=inputs[2], **options)
        expected = composition(*inputs[:2], 5, temperature=0.3, offsets=inputs[2], **options)
    assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))


@pytest.mark.gpu
def test_opcheck_on_the_gpu():
    seed = torch.tensor(4, device="cuda")
    opchecks(*randoms([2, 0, 1], (48,), memory=torch.bfloat16, device="cuda"), seed)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[20] * 4, [5, 0, 1, 33]])
def test_gpu_graph_and_nothing_waits(lengths):
    query, memory, offsets = randoms(lengths, (4096,), torch.bfloat16, torch.bfloat16, "cuda")
    leaves = query.requires_grad_(), memory.requires_grad_()
    grad = torch.randn(len(lengths), 5, 4096, device="cuda", dtype=torch.bfloat16)
    temperature = torch.tensor(0.1, device="cuda")

    def step():
        options = {"temperature": temperature, "offsets": offsets}
        selected, indices, scores = rank_and_select(*leaves, 5, **options)
        grads = torch.autograd.grad((selected, scores), leaves, (grad, scores.detach()))
        return selected.detach(), indices, scores.detach(), *grads

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        query.normal_()
        memory.normal_()
        temperature.fill_(0.7)
    graph.replay()
    expected = step()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))


@EACH
def test_norms_whose_squares_are_no_float32():
    """Order, scores and the question's gradient do not depend on how long vectors are."""
    query, memory, _ = randoms([6, 6], [2, 10])
    grad = torch.randn(2, 6)

    def ranked(factor, other):
        leaf = (query * factor).requires_grad_()
        _, indices, scores = rank_and_select(leaf, memory * other, 3, temperature=0.1)
        scores.backward(grad)
        return indices, scores.detach(), leaf.grad * factor

    expected = ranked(1.0, 1.0)
    for factor, other in ((1.0, 1e-23), (1.0, 4e18), (1e-23, 4e18), (1e30, 1e-37)):
        indices, *found = ranked(factor, other)
        assert torch.equal(indices, expected[0])
        torch.testing.assert_close(found, list(expected[1:]), rtol=1e-4, atol=1e-5)
