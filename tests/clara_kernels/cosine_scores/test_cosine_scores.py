"""What `cosine_scores` computes, in value and gradient."""

import pytest
import torch
from comparison import IMPLEMENTATIONS
from cosine_cases import NEEDS, randoms, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

import clara_kernels.slices
from clara_kernels import cosine_scores
from clara_kernels.dispatch import cpu_tensors_use


def dense_autograd(queries, documents):
    """float64 cosines by plain autograd; only for vectors that are not zero."""
    queries, documents = queries.double(), documents.double()
    dots = torch.einsum("bd,bnd->bn", queries, documents)
    return dots / (queries.norm(dim=-1)[:, None] * documents.norm(dim=-1))


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 4),
    count=st.integers(0, 6),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_value_and_gradients_are_the_cosines(batch, count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    documents = torch.randn(batch, count, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(batch, count, generator=generator, dtype=torch.float64)
    ours = [queries.clone().requires_grad_(), documents.clone().requires_grad_()]
    theirs = [queries.clone().requires_grad_(), documents.clone().requires_grad_()]
    scores, expected = cosine_scores(*ours), dense_autograd(*theirs)
    torch.testing.assert_close(scores, expected)
    scores.backward(weights)
    expected.backward(weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_gradcheck_dense_and_ragged(monkeypatch):
    monkeypatch.setattr(clara_kernels.slices, "_COLUMNS", 3)
    queries = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_scores, (queries, documents))
    flat = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    assert torch.autograd.gradcheck(cosine_scores, (queries, flat, offsets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_dtypes_accumulate_in_float32(dtype):
    queries, documents = torch.randn(3, 20_000).to(dtype), torch.randn(3, 5, 20_000).to(dtype)
    queries.requires_grad_()
    documents.requires_grad_()
    scores = cosine_scores(queries, documents)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(
        scores.double(), dense_autograd(queries, documents), rtol=1e-5, atol=2e-7
    )
    weights = torch.randn(3, 5)
    scores.backward(weights)
    wide = [queries.detach().double().requires_grad_(), documents.detach().double()]
    wide[1].requires_grad_()
    dense_autograd(*wide).backward(weights.double())
    unit = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-21}[dtype]
    # float16's smallest step bounds what a small gradient entry can keep.
    floor = 6e-8 if dtype == torch.float16 else 1e-8
    for one, other in zip((queries, documents), wide, strict=True):
        assert one.grad.dtype == dtype
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=unit, atol=floor)


def test_ragged_equals_each_query_alone():
    lengths = [3, 0, 1, 17, 2]
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    queries = torch.randn(5, 31, requires_grad=True)
    documents = torch.randn(sum(lengths), 31, requires_grad=True)
    weights = torch.randn(sum(lengths))
    scores = cosine_scores(queries, documents, offsets)
    scores.backward(weights)
    for row in range(5):
        rows = slice(offsets[row], offsets[row + 1])
        query = queries.detach()[row : row + 1].clone().requires_grad_()
        candidates = documents.detach()[None, rows].clone().requires_grad_()
        alone = cosine_scores(query, candidates)
        alone.backward(weights[None, rows])
        torch.testing.assert_close(scores[rows], alone[0])
        torch.testing.assert_close(queries.grad[row], query.grad[0])
        torch.testing.assert_close(documents.grad[rows], candidates.grad[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_zero_vectors_score_zero_with_zero_gradients(dtype):
    queries = torch.randn(2, 8, dtype=dtype)
    documents = torch.randn(2, 3, 8, dtype=dtype)
    queries[0] = 0
    documents[1, 2] = 0
    queries.requires_grad_()
    documents.requires_grad_()
    scores = cosine_scores(queries, documents)
    scores.backward(torch.ones_like(scores))
    assert scores[0].tolist() == [0.0, 0.0, 0.0]
    assert scores[1, 2] == 0
    assert scores[1, 0] != 0
    assert not queries.grad[0].any()
    assert not documents.grad[0].any()
    assert not documents.grad[1, 2].any()
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(documents.grad).all()


def test_scale_does_not_matter_down_to_the_smallest_norms():
    query, document = torch.randn(1, 16), torch.randn(1, 1, 16)
    expected = cosine_scores(query, document)
    for scale in (1e-37, 1e-22, 1e-18, 1e-6, 1e6, 1e17, 3e18, 1e37):
        small = (query * scale).requires_grad_()
        scores = cosine_scores(small, document)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
        scores.sum().backward()
        assert torch.isfinite(small.grad).all()


def test_one_rows_bad_values_stay_in_that_row():
    queries = torch.randn(2, 4, requires_grad=True)
    documents = torch.randn(3, 4)
    documents[0] = torch.nan
    scores = cosine_scores(queries, documents, torch.tensor([0, 1, 3], dtype=torch.int32))
    scores.sum().backward()
    assert scores.isnan().tolist() == [True, False, False]
    assert torch.isfinite(queries.grad[1]).all()


def test_documents_of_another_dtype_and_layout():
    queries = torch.randn(2, 6)
    documents = torch.randn(2, 6, 5).bfloat16().transpose(1, 2)
    torch.testing.assert_close(
        cosine_scores(queries, documents).double(), dense_autograd(queries, documents)
    )


def test_only_what_needs_a_gradient_gets_one():
    queries, documents = torch.randn(2, 6, requires_grad=True), torch.randn(2, 3, 6)
    cosine_scores(queries, documents).sum().backward()
    assert queries.grad is not None
    assert documents.grad is None


def test_nothing_to_score():
    none = torch.zeros(1, dtype=torch.int32)
    assert cosine_scores(torch.empty(0, 4), torch.empty(0, 4), none).shape == (0,)
    offsets = torch.zeros(3, dtype=torch.int32)
    assert cosine_scores(torch.randn(2, 4), torch.empty(0, 4), offsets).shape == (0,)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 0, 1]])
def test_opcheck(lengths):
    queries, documents, offsets = randoms(lengths, 6, documents=torch.float16)
    leaves = queries.requires_grad_(), documents.requires_grad_()
    torch.library.opcheck(torch.ops.clara.cosine_scores.default, (*leaves, offsets))
    plain = queries.detach(), documents.detach()
    outputs = torch.ops.clara.cosine_scores(*plain, offsets)
    for needs in NEEDS:
        arguments = (torch.randn_like(outputs[0]), *plain, offsets, *outputs, *needs)
        torch.library.opcheck(torch.ops.clara.cosine_scores_backward.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("ragged", [False, True])
def test_one_compiled_graph_serves_all_lengths(backend, ragged):
    torch._dynamo.reset()
    compiled = torch.compile(cosine_scores, fullgraph=True, dynamic=True, backend=backend)
    lengths = [[2, 3, 0, 4], [5, 7, 1], [0, 1, 8, 9, 2]] if ragged else [[3] * 4, [7] * 3, [9] * 5]
    for number, each in enumerate(lengths):
        queries, documents, offsets = randoms(each, 20)
        grad = torch.randn(documents.shape[:-1])
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            found = with_gradients(compiled, queries, documents, offsets, grad)
        expected = with_gradients(cosine_scores, queries, documents, offsets, grad)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@IMPLEMENTATIONS
def test_under_autocast(implementation):
    queries, documents, _ = randoms([3, 3], 200)
    grad = torch.randn(2, 3)
    with cpu_tensors_use(implementation):
        expected = with_gradients(cosine_scores, queries, documents, None, grad)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = with_gradients(cosine_scores, queries, documents, None, grad)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_bad_arguments():
    queries, documents = torch.randn(2, 4), torch.randn(2, 3, 4)
    flat, offsets = torch.randn(6, 4), torch.tensor([0, 2, 6], dtype=torch.int32)
    with pytest.raises(TypeError, match=r"queries must be a torch\.Tensor, got list"):
        cosine_scores([[1.0]], documents)
    with pytest.raises(TypeError, match=r"documents must be floating point, got torch\.int64"):
        cosine_scores(queries, documents.long())
    with pytest.raises(ValueError, match=r"queries must have shape \[B, D\], got \[2, 2, 2\]"):
        cosine_scores(queries.view(2, 2, 2), documents)
    with pytest.raises(ValueError, match=r"documents must have shape \[2, N, 4\].*got \[6, 4\]"):
        cosine_scores(queries, flat)
    with pytest.raises(ValueError, match=r"documents must have shape \[2, N, 4\].*got \[2, 3, 5\]"):
        cosine_scores(queries, torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match=r"documents must have shape \[ΣN, 4\] with offsets"):
        cosine_scores(queries, documents, offsets)
    with pytest.raises(TypeError, match=r"offsets must be int32, got torch\.int64"):
        cosine_scores(queries, flat, offsets.long())
    with pytest.raises(ValueError, match=r"offsets must have shape \[3\], got \[2\]"):
        cosine_scores(queries, flat, torch.tensor([0, 6], dtype=torch.int32))
    with pytest.raises(ValueError, match="offsets must start at 0, got 1"):
        cosine_scores(queries, flat, torch.tensor([1, 2, 6], dtype=torch.int32))
    with pytest.raises(ValueError, match="offsets must end at 6, the rows of documents, got 5"):
        cosine_scores(queries, flat, torch.tensor([0, 2, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match="offsets must not decrease, got 7 then 6 at positions 1"):
        cosine_scores(queries, flat, torch.tensor([0, 7, 6], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"documents must be on the device of queries \(cpu\)"):
        cosine_scores(queries, documents.to("meta"))
