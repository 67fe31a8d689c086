"""Every implementation of `cosine_scores` against float64."""

import importlib
from itertools import product

import pytest
import torch
from comparison import IMPLEMENTATIONS, assert_close_to, offsets_of, poisoned
from cosine_cases import FLOATS, LENGTHS, NEEDS, check, randoms, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from clara_kernels import cosine_scores
from clara_kernels.cosine_scores import cpu
from clara_kernels.dispatch import cpu_tensors_use


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [1, 33, 48, 513])
@pytest.mark.parametrize("lengths", [[1], [3, 3], LENGTHS])
def test_every_implementation(implementation, dtype, width, lengths):
    inputs = randoms(lengths, width, dtype, dtype)
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        check(*inputs)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("queries", "documents"), list(product(FLOATS, FLOATS)))
def test_mixed_dtypes(implementation, queries, documents):
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        check(*randoms([2, 2], 48, queries, documents))
        check(*randoms([2, 1], 33, queries, documents))


@IMPLEMENTATIONS
@pytest.mark.parametrize("needs", NEEDS)
@pytest.mark.parametrize("lengths", [[3, 3], LENGTHS])
def test_gradients_that_are_asked_for(implementation, needs, lengths):
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        check(*randoms(lengths, 65), needs)


@IMPLEMENTATIONS
def test_many_candidates(implementation):
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        check(*randoms([2, 300, 0], 32))


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    width=st.integers(1, 70),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
    seed=st.integers(0, 2**31),
)
def test_any_shape(implementation, lengths, width, dtypes, seed):
    torch.manual_seed(seed)
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        check(*randoms(lengths, width, *dtypes))


@pytest.fixture
def kernels():
    return importlib.import_module("clara_kernels.cosine_scores.triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("lengths", "width"),
    [([300], 16), ([9, 9], 528), ([6, 0, 1, 8], 528), ([6, 0, 1, 8], 16), ([6, 5], 5200)],
)
def test_tiles_of_large_inputs(kernels, monkeypatch, dtype, lengths, width):
    shared, backward = kernels._shared_tile, kernels._backward_tile
    monkeypatch.setattr(kernels, "_forward_tile", lambda dtype, unit, *_: shared(dtype, unit))
    monkeypatch.setattr(kernels, "_backward_tile", lambda _, *rest: backward(True, *rest))
    with cpu_tensors_use("triton"), poisoned("cosine_scores"):
        check(*randoms(lengths, width, dtype, dtype))


def test_long_vectors_in_several_steps():
    with cpu_tensors_use("triton"), poisoned("cosine_scores"):
        check(*randoms([2], 32_768, torch.float16, torch.float16))
        check(*randoms([2, 1], 5001))


@pytest.mark.parametrize("block", [1, 100, 400])
@pytest.mark.parametrize("lengths", [[4, 4, 4, 4, 4], [3, 0, 9]])
def test_blocks_of_the_cpu_are_put_together(monkeypatch, block, lengths):
    monkeypatch.setattr(cpu, "_BLOCK", block)
    with cpu_tensors_use("cpu"):
        check(*randoms(lengths, 30))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_vectors_of_every_implementation(implementation, dtype):
    queries, documents, offsets = randoms([3, 2], 20, dtype, dtype)
    queries[0], documents[4] = 0, 0
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        grad = torch.full((5,), torch.inf)
        grad[3] = 1
        scores, *grads = with_gradients(cosine_scores, queries, documents, offsets, grad)
        check(queries, documents, offsets)
    assert scores.eq(0).tolist() == [True, True, True, False, True]
    assert grads[0].any(-1).tolist() == [False, True]
    assert grads[1].any(-1).tolist() == [False, False, False, True, False]


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_at_the_ends_of_the_range(implementation, dtype):
    query, document = torch.randn(1, 33), torch.randn(1, 2, 33)
    # Triton's interpreter misreads subnormal bfloat16.
    end = 1e37 if dtype == torch.float32 else 1e33
    scales = (1 / end, 1e-22, 1e-17, 1.0, 3e18, end)
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        for scale, other in product(scales, scales):
            one, two = (query * scale).to(dtype), (document * other).to(dtype)
            check(one, two, None)
            exact = cosine_similarity(one.double()[:, None], two.double(), dim=-1, eps=0)
            assert_close_to(cosine_scores(one, two), exact, scale=1.0)


@IMPLEMENTATIONS
def test_each_document_has_a_magnitude_of_its_own(implementation):
    """Extreme, ordinary and zero vectors side by side do not change each other's scores."""
    queries, documents, offsets = randoms([6, 1, 3], 40)
    documents *= torch.tensor([1e-44, 1, 0, 3e18, 1e37, 1e-22, 1, 1e30, 1, 1e-38])[:, None]
    queries *= torch.tensor([1.0, 1e25, 1e-41])[:, None]
    question = torch.repeat_interleave(torch.arange(3), torch.tensor([6, 1, 3]))
    wide = queries.double()[question], documents.double()
    exact = cosine_similarity(*wide, dim=-1, eps=0).nan_to_num()
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        scores = cosine_scores(queries, documents, offsets)
        alone = torch.cat([cosine_scores(queries[i][None], d[None, None])[0] for i, d in
                           zip(question.tolist(), documents, strict=True)])  # fmt: skip
    assert scores[2] == 0
    assert_close_to(scores, exact, scale=1.0)
    torch.testing.assert_close(scores, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_extreme_norms_in_float64(implementation):
    query, document = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 9), (1, 2, 9)))
    expected = with_gradients(cosine_scores, query, document, None, torch.ones(1, 2))
    with cpu_tensors_use(implementation):
        for scale, other in ((1e-200, 1e200), (1e250, 1e-290), (1e-300, 1e-300)):
            found = with_gradients(
                cosine_scores, query * scale, document * other, None, torch.ones(1, 2)
            )
            for one, two, factor in zip(found, expected, (1, scale, other), strict=True):
                torch.testing.assert_close(one * factor, two)


@IMPLEMENTATIONS
def test_bad_values_stay_with_their_document_and_query(implementation):
    queries, documents, offsets = randoms([1, 2], 20)
    documents[0, 3] = torch.nan
    with cpu_tensors_use(implementation):
        scores, *grads = with_gradients(cosine_scores, queries, documents, offsets, torch.ones(3))
    assert scores.isnan().tolist() == [True, False, False]
    assert grads[0].isnan().any(-1).tolist() == [True, False]
    assert grads[1].isnan().any(-1).tolist() == [True, False, False]


@IMPLEMENTATIONS
def test_layouts(implementation):
    queries = torch.randn(24, 3).T
    memory = torch.randn(4, 24)
    grad = torch.randn(4, 3).T
    transposed = torch.randn(3, 24, 4).transpose(1, 2)
    with cpu_tensors_use(implementation):
        for documents in (memory.expand(3, 4, 24), transposed, torch.randn(3, 4, 48)[..., ::2]):
            whole = with_gradients(cosine_scores, queries, documents.contiguous(), None, grad)
            found = with_gradients(cosine_scores, queries, documents, None, grad)
            for one, other in zip(found, whole, strict=True):
                torch.testing.assert_close(one, other)
        shared = memory.clone().requires_grad_()
        cosine_scores(queries, shared.expand(3, 4, 24)).backward(grad)
        each = memory.expand(3, 4, 24).contiguous()
        sums = with_gradients(cosine_scores, queries, each, None, grad)[2].sum(0)
        torch.testing.assert_close(shared.grad, sums)
        # A sum's gradient is expanded from one value.
        leaf = queries.clone().requires_grad_()
        cosine_scores(leaf, memory.expand(3, 4, 24)).sum().backward()
        ones = with_gradients(cosine_scores, queries, each, None, torch.ones(3, 4))
        torch.testing.assert_close(leaf.grad, ones[1])


@IMPLEMENTATIONS
def test_without_candidates(implementation):
    queries = torch.randn(3, 17, requires_grad=True)
    with cpu_tensors_use(implementation), poisoned("cosine_scores"):
        dense = torch.randn(3, 0, 17, requires_grad=True)
        cosine_scores(queries, dense).sum().backward()
        assert queries.grad.eq(0).all()
        assert dense.grad.shape == (3, 0, 17)
        queries.grad = None
        cosine_scores(queries, torch.empty(0, 17), offsets_of([0, 0, 0])).sum().backward()
        assert queries.grad.eq(0).all()
        assert cosine_scores(torch.empty(0, 17), torch.empty(0, 5, 17)).shape == (0, 5)
        assert cosine_scores(torch.empty(2, 0), torch.empty(2, 3, 0)).tolist() == [[0.0] * 3] * 2


def test_forward_with_wrong_offsets_touches_no_other_memory(kernels):
    # Where offsets are not checked they must not lead out of the tensors.
    queries, documents, _ = randoms([2, 2], 16)
    expected = cosine_scores(queries, documents)
    for wrong in ([0, 2, 900], [-900, 2, 4], [0, 900, 4], [0, 2, -900]):
        offsets = torch.tensor(wrong, dtype=torch.int32)
        scores = kernels.forward(queries, documents.flatten(0, 1), offsets)[0]
        assert scores.shape == (4,)
        if wrong[1] == 2 and wrong[0] == 0:
            torch.testing.assert_close(scores[:2], expected[0])
