from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
import torch
from comparison import assert_close_to, launches, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clara_kernels.ragged
from clara_kernels import select_topk
from clara_kernels.dispatch import cpu_tensors_use
from clara_kernels.select_topk.noise import gumbel_noise
from clara_kernels.sparsemax import sparsemax

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
RELAXATIONS = ["softmax", "sparsemax"]
MEANINGS = [
    {"relaxation": relaxation, "mask": mask}
    for relaxation, mask in product(RELAXATIONS, ("exact", "reference"))
]
IMPLEMENTATIONS = ["reference", "triton"]
EACH = pytest.mark.usefixtures("implementation")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with cpu_tensors_use(request.param), poisoned("select_topk"):
        yield request.param


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


@pytest.mark.parametrize("name", ["differentiable_topk", "differentiable_topk_leaking"])
def test_agrees_with_the_reference_implementation(name, implementation):
    file = load_file(REFERENCE / f"{name}.safetensors")
    scores = file["scores"].requires_grad_()
    selected, indices = select_topk(
        scores, file["documents"], 3, temperature=0.02, mask="reference"
    )
    assert torch.equal(indices, file["topk"])
    torch.testing.assert_close(selected, file["selected"], rtol=1e-5, atol=1e-5)
    selected.backward(file["upstream_gradient"])
    # Terms of several hundred cancel; of those 8e-5 is the last bit.
    atol = 8e-5 if implementation == "triton" else 1e-5
    torch.testing.assert_close(scores.grad, file["scores_gradient"], rtol=1e-5, atol=atol)


@EACH
def test_the_exact_mask_does_not_leak():
    # The first document leads by 0.4: exp(0.4 / 0.02) * 1e-8 = 4.85 against 1 and 1.
    scores, memory = torch.tensor([[0.1, 0.5, 0.1]]), torch.eye(3)[None]
    shares = {}
    for mask in ("exact", "reference"):
        _, indices, probabilities = select_topk(
            scores, memory, 2, temperature=0.02, mask=mask, return_probabilities=True
        )
        assert indices.tolist() == [[1, 0]]
        shares[mask] = probabilities[0, 1]
    torch.testing.assert_close(shares["exact"], torch.tensor([0.5, 0.0, 0.5]))
    leak = 4.85165 / 6.85165
    expected = torch.tensor([(1 - leak) / 2, leak, (1 - leak) / 2])
    torch.testing.assert_close(shares["reference"], expected, rtol=1e-4, atol=0)


def test_the_leaking_file_tells_the_masks_apart():
    file = load_file(REFERENCE / "differentiable_topk_leaking.safetensors")
    scores = file["scores"].requires_grad_()
    selected, _ = select_topk(scores, file["documents"], 3, temperature=0.02, mask="exact")
    selected.backward(file["upstream_gradient"])
    assert (scores.grad - file["scores_gradient"]).abs().max() > 1e-3


@pytest.mark.parametrize("relaxation", ["softmax", "sparsemax"])
@pytest.mark.parametrize("mask", ["exact", "reference"])
@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 4),
    count=st.integers(1, 9),
    data=st.data(),
    noisy=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_the_dense_construction(relaxation, mask, batch, count, data, noisy, seed):
    k = data.draw(st.integers(1, count))
    trailing = data.draw(st.sampled_from([(1,), (5,), (3, 7)]))
    temperature = data.draw(st.sampled_from([0.02, 0.5, 3.0]))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, count, generator=generator, dtype=torch.float64) * 2 - 1
    memory = torch.randn(batch, count, *trailing, generator=generator, dtype=torch.float64)
    upstream = torch.randn(batch, k, *trailing, generator=generator, dtype=torch.float64)
    upstream_p = torch.randn(batch, k, count, generator=generator, dtype=torch.float64)
    noise = gumbel_noise(seed, batch, count, scores.device) if noisy else None

    ours = leaves(scores, memory)
    selected, indices, probabilities = select_topk(
        *ours,
        k,
        temperature=temperature,
        relaxation=relaxation,
        mask=mask,
        noise="gumbel" if noisy else None,
        seed=seed,
        return_probabilities=True,
    )
    theirs = leaves(scores, memory)
    expected = dense_straight_through(*theirs, k, temperature, relaxation, mask, noise)
    assert torch.equal(indices, expected[1])
    rows = torch.arange(batch)[:, None]
    assert torch.equal(selected, memory[rows, indices])
    torch.testing.assert_close(selected, expected[0])
    torch.testing.assert_close(probabilities, expected[2], rtol=1e-6, atol=1e-7)
    ((selected * upstream).sum() + (probabilities * upstream_p).sum()).backward()
    ((expected[0] * upstream).sum() + (expected[2] * upstream_p).sum()).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("relaxation", ["softmax", "sparsemax"])
@pytest.mark.parametrize("mask", ["exact", "reference"])
def test_gradcheck_of_the_probabilities(relaxation, mask):
    scores = torch.linspace(-1, 1, 12, dtype=torch.float64)[torch.randperm(12)].view(2, 6)
    memory = torch.randn(2, 6, 3, dtype=torch.float64)

    def probabilities(scores):
        return select_topk(
            scores,
            memory,
            4,
            temperature=0.4,
            relaxation=relaxation,
            mask=mask,
            return_probabilities=True,
        )[2]

    assert torch.autograd.gradcheck(probabilities, (scores.requires_grad_(),))


def test_gradcheck_of_the_gather():
    scores = torch.rand(2, 6, dtype=torch.float64)
    memory = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda memory: select_topk(scores, memory, 4, temperature=0.4)[0], (memory,)
    )


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_value_is_the_document_bit_for_bit(dtype):
    memory = torch.randn(2, 5, 3, 4, dtype=torch.float32).to(dtype)
    memory[0, 1, 0] = torch.tensor([-0.0, torch.inf, torch.nan, -torch.inf])
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.0], [0.5, 0.1, 0.4, 0.2, 0.3]])
    scores.requires_grad_()
    selected, indices = select_topk(scores, memory, 3, temperature=0.02)
    assert indices.tolist() == [[1, 3, 2], [0, 2, 4]]
    expected = memory[torch.arange(2)[:, None], indices]
    assert selected.dtype == dtype
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(selected.view(integer), expected.view(integer))


@pytest.mark.parametrize("relaxation", ["softmax", "sparsemax"])
@pytest.mark.parametrize("mask", ["exact", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_dtypes_are_computed_in_float32(dtype, mask, relaxation):
    scores = (torch.rand(4, 9) * 0.1).to(dtype)
    memory = torch.randn(4, 9, 5, 16).to(dtype)
    upstream = torch.randn(4, 3, 5, 16).to(dtype)
    options = {"temperature": 0.1, "mask": mask, "relaxation": relaxation}
    low, wide = leaves(scores, memory), leaves(scores.double(), memory.double())
    selected, indices = select_topk(*low, 3, **options)
    expected, expected_indices = select_topk(*wide, 3, **options)
    assert torch.equal(indices, expected_indices)
    selected.backward(upstream)
    expected.backward(upstream.double())
    assert low[0].grad.dtype == dtype
    unit = {torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(low[0].grad.double(), wide[0].grad, rtol=unit, atol=1e-3)
    assert torch.equal(low[1].grad.double(), wide[1].grad)


@EACH
def test_the_reference_mask_in_float16_keeps_its_meaning():
    scores = torch.tensor([[0.5, 0.125, 0.0]], dtype=torch.float16)
    memory = torch.randn(1, 3, 4, dtype=torch.float16)
    _, _, probabilities = select_topk(
        scores, memory, 2, temperature=0.02, mask="reference", return_probabilities=True
    )
    expected = (scores.double() / 0.02 + torch.tensor([[1e-8, 1.0, 1.0]]).log()).softmax(-1)
    torch.testing.assert_close(probabilities[:, 1].double(), expected, rtol=1e-4, atol=1e-7)
    assert probabilities[0, 1, 0] > 0.1


@pytest.mark.parametrize("noise", [None, "gumbel"])
@pytest.mark.parametrize("relaxation", ["softmax", "sparsemax"])
@pytest.mark.parametrize("mask", ["exact", "reference"])
def test_ragged_equals_rows_padded_with_masks(mask, relaxation, noise, monkeypatch):
    monkeypatch.setattr(clara_kernels.ragged, "_COLUMNS", 4)
    lengths, k, width = [3, 0, 1, 7, 2], 3, 7
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    scores, memory = leaves(torch.rand(13), torch.randn(13, 2, 5))
    options = {
        "temperature": 0.1,
        "mask": mask,
        "relaxation": relaxation,
        "noise": noise,
        "seed": 5,
        "return_probabilities": True,
    }
    upstream, upstream_p = torch.randn(5, k, 2, 5), torch.randn(5, k, width)
    selected, indices, probabilities = select_topk(scores, memory, k, offsets=offsets, **options)
    present = torch.arange(width) < torch.tensor(lengths)[:, None]
    flat_p = upstream_p.transpose(0, 1)[:, present]  # [k, ΣN]
    ((selected * upstream).sum() + (probabilities * flat_p).sum()).backward()

    dense_scores = torch.full((5, width), -torch.inf)
    dense_memory = torch.full((5, width, 2, 5), torch.nan)
    for row, length in enumerate(lengths):
        rows = slice(offsets[row], offsets[row + 1])
        dense_scores[row, :length] = scores.detach()[rows]
        dense_memory[row, :length] = memory.detach()[rows]
    dense = leaves(dense_scores, dense_memory)
    expected = select_topk(*dense, k, **options)
    torch.testing.assert_close(selected, expected[0], rtol=0, atol=0)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(probabilities, expected[2].transpose(0, 1)[:, present])
    assert not expected[2].transpose(0, 1)[:, ~present].any()
    ((expected[0] * upstream).sum() + (expected[2] * upstream_p).sum()).backward()
    for row, length in enumerate(lengths):
        rows = slice(offsets[row], offsets[row + 1])
        torch.testing.assert_close(scores.grad[rows], dense[0].grad[row, :length])
        torch.testing.assert_close(memory.grad[rows], dense[1].grad[row, :length])
        assert not dense[0].grad[row, length:].any()
        assert not dense[1].grad[row, length:].any()


@EACH
@pytest.mark.parametrize("mask", ["exact", "reference"])
def test_slots_beyond_the_candidates_are_empty(mask):
    scores, memory = leaves(torch.tensor([[0.2, 0.6, 0.4]]), torch.randn(1, 3, 4))
    selected, indices, probabilities = select_topk(
        scores, memory, 5, temperature=0.1, mask=mask, return_probabilities=True
    )
    assert indices.tolist() == [[1, 2, 0, -1, -1]]
    assert not selected[:, 3:].any()
    assert not probabilities[:, 3:].any()
    upstream = torch.randn(1, 5, 4)
    selected.backward(upstream)
    alone = leaves(scores, memory)
    select_topk(*alone, 3, temperature=0.1, mask=mask)[0].backward(upstream[:, :3])
    torch.testing.assert_close(scores.grad, alone[0].grad)
    torch.testing.assert_close(memory.grad, alone[1].grad)


@EACH
@pytest.mark.parametrize("options", MEANINGS)
def test_masked_candidates_are_never_taken_and_their_memory_never_read(options):
    scores = torch.full((2, 4), -torch.inf)
    scores[0, 1::2] = torch.tensor([0.1, 0.3])
    memory = torch.randn(2, 4, 2)
    memory[scores == -torch.inf] = torch.nan
    leaf, upstream = leaves(scores)[0], torch.randn(2, 3, 2)
    selected, indices, probabilities = select_topk(
        leaf, memory, 3, temperature=0.5, return_probabilities=True, **options
    )
    assert indices.tolist() == [[3, 1, -1], [-1, -1, -1]]
    assert not probabilities[:, :, ::2].any()
    assert not probabilities[1].any()
    assert not selected[1].any()
    selected.backward(upstream)
    assert not leaf.grad[:, ::2].any()
    assert not leaf.grad[1].any()
    # The two that are left, alone.
    alone = leaves(scores[:1, 1::2])[0]
    select_topk(alone, memory[:1, 1::2], 3, temperature=0.5, **options)[0].backward(upstream[:1])
    torch.testing.assert_close(leaf.grad[:1, 1::2], alone.grad)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ties_go_to_the_lowest_index(dtype):
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.7, 0.5], [0.0, -0.0, 0.0, -0.0, 0.0]])
    _, indices = select_topk(scores.to(dtype), torch.randn(2, 5, 1), 4, temperature=0.02)
    assert indices.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


@EACH
@pytest.mark.parametrize("k", [5, 40])
def test_order_of_thousands(k):
    scores = torch.randint(0, 90, (2, 3000)) / 100  # many ties
    scores[1] = 0
    memory = torch.randn(2, 3000, 2)
    selected, indices = select_topk(scores, memory, k, temperature=0.02)
    ordered = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(indices, ordered)
    assert torch.equal(selected, memory[torch.arange(2)[:, None], ordered])


@EACH
def test_neighbouring_floats_are_told_apart_after_the_division():
    low = torch.linspace(0.64, 0.99, 150)
    scores = torch.stack([low, torch.nextafter(low, torch.tensor(2.0))], dim=1)
    _, indices = select_topk(scores, torch.randn(150, 2, 1), 1, temperature=0.02)
    assert (indices == 1).all()


@pytest.mark.parametrize("relaxation", ["softmax", "sparsemax"])
@pytest.mark.parametrize("mask", ["exact", "reference"])
def test_permuting_candidates_permutes_the_gradient(mask, relaxation):
    scores, memory, upstream = torch.rand(3, 8), torch.randn(3, 8, 6), torch.randn(3, 4, 6)
    shuffle = torch.randperm(8)
    options = {"temperature": 0.2, "mask": mask, "relaxation": relaxation}
    plain, shuffled = leaves(scores, memory), leaves(scores[:, shuffle], memory[:, shuffle])
    selected, indices = select_topk(*plain, 4, **options)
    selected_shuffled, indices_shuffled = select_topk(*shuffled, 4, **options)
    assert torch.equal(selected, selected_shuffled)
    assert torch.equal(shuffle[indices_shuffled], indices)
    selected.backward(upstream)
    selected_shuffled.backward(upstream)
    torch.testing.assert_close(shuffled[0].grad, plain[0].grad[:, shuffle])
    assert torch.equal(shuffled[1].grad, plain[1].grad[:, shuffle])


@EACH
def test_the_gradient_raises_the_score_of_the_more_useful_document():
    scores = torch.tensor([[0.30, 0.31]], requires_grad=True)
    memory = torch.tensor([[[1.0], [0.0]]])
    target = 1.0
    selected, indices = select_topk(scores, memory, 1, temperature=0.02)
    assert indices.item() == 1
    (selected - target).square().sum().backward()
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]


@EACH
def test_temperature_as_a_tensor_equals_the_float():
    scores, memory, upstream = torch.rand(3, 8), torch.randn(3, 8, 6), torch.randn(3, 2, 6)
    gradients = []
    for temperature in (0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)):
        (leaf,) = leaves(scores)
        select_topk(leaf, memory, 2, temperature=temperature)[0].backward(upstream)
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@EACH
def test_strided_and_expanded_memory():
    base = torch.randn(6, 2, 5)
    scores, upstream = torch.rand(2, 6), torch.randn(2, 3, 5)
    results = []
    for memory in (base.transpose(0, 1), base.transpose(0, 1).contiguous()):
        leaf = leaves(scores)[0]
        selected, _ = select_topk(leaf, memory, 3, temperature=0.3)
        selected.backward(upstream)
        results.append((selected, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    shared = torch.randn(1, 6, 5, requires_grad=True)
    select_topk(scores, shared.expand(2, 6, 5), 6, temperature=0.3)[0].sum().backward()
    assert torch.equal(shared.grad, torch.full((1, 6, 5), 2.0))


@EACH
@pytest.mark.parametrize("counts", [(0, 4), (3, 0)])
def test_nothing_to_select_from(counts):
    scores, memory = leaves(torch.rand(counts), torch.randn(*counts, 2, 3))
    selected, indices = select_topk(scores, memory, 2, temperature=0.1)
    assert selected.shape == (counts[0], 2, 2, 3)
    assert not selected.any()
    assert (indices == -1).all()
    selected.sum().backward()
    assert scores.grad.shape == counts


def offsets_of(lengths, device="cpu"):
    return torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)


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
@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63, 2**64 - 1])
def test_noise_is_that_of_its_definition(seed):
    # Of zeros, the k best candidates are those with the most noise; p tells it to the last digits.
    lengths = [3, 0, 20]
    noise = gumbel_noise(seed, 3, 20, torch.device("cpu"))
    present = torch.arange(20) < torch.tensor(lengths)[:, None]
    expected = noise.masked_fill(~present, -torch.inf)
    signed = torch.tensor(seed if seed < 2**63 else seed - 2**64)
    for given_seed in (seed, signed):
        _, indices, p = select_topk(
            torch.zeros(sum(lengths)),
            torch.randn(sum(lengths), 3),
            2,
            temperature=0.7,
            noise="gumbel",
            seed=given_seed,
            offsets=offsets_of(lengths),
            return_probabilities=True,
        )
        ordered = expected.sort(dim=1, descending=True, stable=True)
        order = torch.where(ordered.values == -torch.inf, -1, ordered.indices)
        assert torch.equal(indices, order[:, :2])
        torch.testing.assert_close(p[0], expected.softmax(-1)[present], rtol=1e-6, atol=1e-7)


def test_noise_of_the_kernels_to_the_bit():
    module = import_module("clara_kernels.select_topk.triton")
    scores, temperature = torch.randn(3, 200), torch.tensor(0.3)
    for seed in (0, 77, 2**40 + 1, 2**64 - 3):
        signed = torch.tensor(seed if seed < 2**63 else seed - 2**64)
        expected = scores / temperature + gumbel_noise(seed, 3, 200, scores.device)
        assert torch.equal(module._Problem(scores, None, temperature, signed).keys, expected)


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
    rest = (torch.tensor(0.1), None, False, False)
    memory = memory.flatten(0, 1)
    expected = module.forward(scores, memory, None, 2, *rest)[0]
    for wrong in ([0, 2, 900], [-900, 2, 4], [0, 900, 4], [0, 2, -900]):
        offsets = torch.tensor(wrong, dtype=torch.int32)
        selected, indices = module.forward(scores.flatten(), memory, offsets, 2, *rest)
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
    rest = (torch.empty((), device="meta"), torch.empty((), dtype=torch.int64, device="meta"))
    with launches("select_topk", 90), Allocations() as forward:
        selected, indices = module.forward(scores, memory, offsets, k, *rest, False, False)
    with launches("select_topk", 90), Allocations() as backward:
        inputs = (selected, scores, memory, indices, offsets, *rest, False, False)
        module.backward(*inputs, True, False)
    extra = forward.total - selected.nbytes - indices.nbytes + backward.total
    assert 0 < extra < memory.nbytes / 100


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


def test_opcheck():
    inputs = *randoms([2, 0, 1], 6, memory=torch.float16), torch.tensor(5), (True, True)
    opchecks(*inputs, False, True)
    with cpu_tensors_use("triton"):
        opchecks(*inputs, False, True, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_opcheck_without_noise(needs):
    opchecks(*randoms([3, 3], 6), None, needs, True, False)


@pytest.mark.parametrize(
    ("backend", "ragged"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)]
)
@pytest.mark.parametrize("numbers", [True, False])
def test_one_compiled_graph_serves_all_lengths_temperatures_and_seeds(backend, ragged, numbers):
    torch._dynamo.reset()
    compiled = torch.compile(select_topk, fullgraph=True, dynamic=True, backend=backend)
    lengths = [[2, 3, 0, 4], [5, 7, 1], [0, 1, 8, 9, 2]] if ragged else [[3] * 4, [7] * 3, [9] * 5]
    values = [(0.02, 1), (0.5, 2**40), (3.0, 77)]
    for number, (each, (temperature, seed)) in enumerate(zip(lengths, values, strict=True)):
        scores, memory, offsets = randoms(each, 20)
        if not numbers:
            temperature, seed = torch.tensor(temperature), torch.tensor(seed)
        options = {"temperature": temperature, "noise": "gumbel", "seed": seed}
        grad = torch.randn(len(each), 2, 20)
        results = []
        for function in (compiled, select_topk):
            inputs = leaves(scores, memory)
            with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                selected, indices, p = function(
                    *inputs, 2, offsets=offsets, return_probabilities=True, **options
                )
            ((selected * grad).sum() + p.square().sum()).backward()
            results.append((selected, indices, p, *(leaf.grad for leaf in inputs)))
        torch.testing.assert_close(*results)


def test_a_compiled_graph_takes_seeds_of_64_bits():
    scores, memory, _ = randoms([5, 5], 4)
    torch._dynamo.reset()
    compiled = torch.compile(select_topk, fullgraph=True, backend="aot_eager")
    options = {"temperature": 0.3, "noise": "gumbel", "seed": 2**64 - 1}
    expected = select_topk(scores, memory, 2, **options)
    torch.testing.assert_close(compiled(scores, memory, 2, **options), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("options", MEANINGS)
@pytest.mark.parametrize("memory", FLOATS)
@pytest.mark.parametrize(("lengths", "width", "k"), SHAPES)
def test_on_the_gpu(lengths, width, k, memory, options):
    with poisoned("select_topk"):
        check(*randoms(lengths, width, memory=memory, device="cuda"), k, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("scores", FLOATS)
@pytest.mark.parametrize("memory", FLOATS)
@pytest.mark.parametrize(
    ("lengths", "width", "k"),
    [
        ([20] * 64, 4096, 5),
        ([17, 19, 0] * 30, 513, 5),
        ([20] * 3, 32_768, 5),
        ([1000, 0, 3], 1040, 100),
        ([3000, 2100], 64, 5),
        ([1] * 70_000, 16, 1),  # more questions than the second axis of a grid has room for
    ],
)
def test_large_shapes_on_the_gpu(lengths, width, k, scores, memory):
    with poisoned("select_topk"):
        check(*randoms(lengths, width, scores, memory, "cuda"), k)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[200] * 50, [150, 0, 7] * 60])
def test_noise_on_the_gpu(lengths):
    scores, memory, offsets = randoms(lengths, 8, device="cuda")
    check(scores, memory, offsets, 3, noise="gumbel", seed=2**64 - 5)
    on_cpu = [None if x is None else x.cpu() for x in (scores, memory, offsets)]
    chosen = [
        select_topk(*x, 3, temperature=0.2, noise="gumbel", seed=1, offsets=offsets)[1].cpu()
        for *x, offsets in ((scores, memory, offsets), on_cpu)
    ]
    assert torch.equal(*chosen)


@pytest.mark.gpu
def test_opcheck_on_the_gpu():
    scores, memory, offsets = randoms([3, 0, 1], 48, device="cuda")
    seed = torch.tensor(5, device="cuda")
    opchecks(scores, memory, offsets, seed, (True, True), True, False)


def gpu_step(lengths, width=1024):
    """A function that selects and differentiates, and the tensors that it reads."""
    scores, memory, offsets = randoms(lengths, width, memory=torch.bfloat16, device="cuda")
    grad = torch.randn(len(lengths), 5, width, device="cuda", dtype=torch.bfloat16)
    temperature = torch.tensor(0.1, device="cuda")
    seed = torch.tensor(3, device="cuda")
    options = {"temperature": temperature, "noise": "gumbel", "seed": seed, "offsets": offsets}
    inputs = leaves(scores, memory)

    def step():
        selected, indices, p = select_topk(*inputs, 5, return_probabilities=True, **options)
        grads = torch.autograd.grad((selected, p), inputs, (grad, p.detach()))
        return selected.detach(), indices, p.detach(), *grads

    return step, (*inputs, grad, temperature, seed)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[20] * 4, [5, 0, 1, 33]])
def test_gpu_graph_and_side_stream(lengths):
    step, (scores, memory, grad, temperature, seed) = gpu_step(lengths)
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        scores.normal_()
        memory.normal_()
        grad.normal_()
        temperature.fill_(0.7)
        seed.fill_(4)
    graph.replay()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[20] * 4, [5, 0, 1, 33]])
def test_nothing_waits_for_the_gpu(lengths):
    step, (scores, memory, *_) = gpu_step(lengths)
    offsets = None if scores.dim() == 2 else offsets_of(lengths, "cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        select_topk(scores, memory, 3, temperature=0.1, noise="gumbel", seed=1, offsets=offsets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_memory_needed_on_the_gpu():
    scores, memory, _ = randoms([20] * 64, 32_768, memory=torch.bfloat16, device="cuda")
    scores.requires_grad_()
    grad = torch.randn(64, 5, 32_768, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):  # the first call loads the kernels
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        selected, _ = select_topk(scores, memory, 5, temperature=0.02)
        torch.autograd.grad(selected, scores, grad)
        extra = torch.cuda.max_memory_allocated() - before - selected.nbytes
        del selected
    assert extra < memory.nbytes / 100


SCORES, MEMORY = torch.rand(2, 3), torch.randn(2, 3, 4, 5)
OFFSETS = torch.tensor([0, 1, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": [0.1]}, TypeError, r"scores must be a torch\.Tensor, got list"),
        ({"scores": SCORES.long()}, TypeError, r"scores must be floating point, got torch\.int64"),
        ({"memory": MEMORY.int()}, TypeError, r"memory must be floating point, got torch\.int32"),
        ({"memory": MEMORY.to("meta")}, ValueError, "memory must be on the device of scores"),
        ({"scores": SCORES[0]}, ValueError, r"scores must have shape \[B, N\].*got \[3\]"),
        ({"memory": MEMORY[:, :2]}, ValueError, r"memory must have shape \[2, 3, ...\]"),
        ({"memory": SCORES}, ValueError, r"memory must have shape \[2, 3, ...\], got \[2, 3\]"),
        ({"offsets": OFFSETS}, ValueError, r"scores must have shape \[ΣN\] with offsets"),
        (
            {"scores": SCORES[0], "offsets": OFFSETS},
            ValueError,
            r"memory must have shape \[3, ...\], got \[2, 3, 4, 5\]",
        ),
        (
            {"scores": SCORES[0], "memory": MEMORY[0], "offsets": OFFSETS[:2]},
            ValueError,
            "offsets must end at 3, the rows of scores, got 1",
        ),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.0}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"relaxation": "hard"}, ValueError, "relaxation must be one of 'softmax', 'sparsemax'"),
        ({"mask": "none"}, ValueError, "mask must be one of 'exact', 'reference', got 'none'"),
        ({"noise": "normal"}, ValueError, "noise must be one of None, 'gumbel', got 'normal'"),
        ({"noise": "gumbel"}, ValueError, 'seed must be given when noise="gumbel"'),
        ({"noise": "gumbel", "seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"noise": "gumbel", "seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"noise": "gumbel", "seed": 1.5}, TypeError, "seed must be an int .* got float"),
        (
            {"noise": "gumbel", "seed": torch.tensor(1, dtype=torch.int32)},
            TypeError,
            r"seed must be an int or a 0-d int64 tensor, got torch\.int32",
        ),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0 and finite, got 0.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be above 0 and finite"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be above 0"),
        ({"temperature": torch.ones(1)}, ValueError, r"temperature must have shape \[\]"),
        ({"temperature": "1"}, TypeError, "temperature must be a float or a 0-d tensor, got str"),
        (
            {"temperature": torch.tensor(1.0, requires_grad=True)},
            ValueError,
            "temperature must not require a gradient",
        ),
        ({"scores": SCORES * torch.nan}, ValueError, "scores must be finite or -inf, got NaN"),
        (
            {"scores": SCORES + torch.inf},
            ValueError,
            r"scores must be finite or -inf, got .* \+inf",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"scores": SCORES, "memory": MEMORY, "k": 2, "temperature": 0.1, **change}
    with pytest.raises(error, match=message):
        select_topk(**arguments)


@EACH
def test_autocast_does_not_lower_the_precision():
    scores, memory, upstream = torch.rand(3, 8), torch.randn(3, 8, 6), torch.randn(3, 2, 6)
    plain, cast = leaves(scores), leaves(scores)
    select_topk(*plain, memory, 2, temperature=0.1)[0].backward(upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        select_topk(*cast, memory, 2, temperature=0.1)[0].backward(upstream)
    assert torch.equal(plain[0].grad, cast[0].grad)
