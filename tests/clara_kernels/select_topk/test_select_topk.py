"""What `select_topk` computes, in value and gradient."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from selection_cases import EACH, MEANINGS, dense_straight_through, leaves

import clara_kernels.slices
from clara_kernels import select_topk
from clara_kernels.select_topk.noise import gumbel_noise

REFERENCE = Path(__file__).parents[2] / "data" / "reference"


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
    monkeypatch.setattr(clara_kernels.slices, "_COLUMNS", 4)
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


@EACH
def test_autocast_does_not_lower_the_precision():
    scores, memory, upstream = torch.rand(3, 8), torch.randn(3, 8, 6), torch.randn(3, 2, 6)
    plain, cast = leaves(scores), leaves(scores)
    select_topk(*plain, memory, 2, temperature=0.1)[0].backward(upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        select_topk(*cast, memory, 2, temperature=0.1)[0].backward(upstream)
    assert torch.equal(plain[0].grad, cast[0].grad)
