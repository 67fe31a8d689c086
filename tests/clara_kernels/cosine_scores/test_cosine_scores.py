import importlib
from itertools import product

import pytest
import torch
from comparison import IMPLEMENTATIONS, assert_close_to, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

import clara_kernels.ragged
from clara_kernels import cosine_scores
from clara_kernels.cosine_scores import cpu
from clara_kernels.cosine_scores.reference import cosine_scores_reference, question_of_rows
from clara_kernels.dispatch import cpu_tensors_use

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
NEEDS = [(True, True), (True, False), (False, True)]
LENGTHS = [2, 0, 1, 5, 0]


def offsets_of(lengths, device="cpu"):
    return torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)


def randoms(lengths, width, queries=torch.float32, documents=torch.float32, device="cpu"):
    """Queries and documents, dense for one length of all; cosines between 0.1 and 0.9."""
    query = torch.randn(len(lengths), width, device=device)
    near = query.repeat_interleave(torch.tensor(lengths, device=device), 0)
    document = (near + torch.randn_like(near)) * torch.rand(len(near), 1, device=device)
    if len(set(lengths)) == 1:
        shaped = document.view(len(lengths), lengths[0], width)
        return query.to(queries), shaped.to(documents), None
    return query.to(queries), document.to(documents), offsets_of(lengths, device)


def with_gradients(function, queries, documents, offsets, grad, needs=(True, True)):
    inputs = zip((queries, documents), needs, strict=True)
    leaves = [each.detach().requires_grad_(needed) for each, needed in inputs]
    scores = function(*leaves, offsets)
    scores.backward(grad)
    return scores.detach(), *(leaf.grad for leaf in leaves)


def terms(grad, queries, documents, offsets):
    """The largest terms that the gradients are sums of; of nearly equal vectors little is left."""
    queries, documents = queries.double(), documents.double().flatten(0, -2)
    norms = [each.norm(dim=-1) for each in (queries, documents)]
    lengths = [torch.where(norm == 0, torch.inf, norm) for norm in norms]
    units = [x / length[:, None] for x, length in zip((queries, documents), lengths, strict=True)]
    largest = max(unit.abs().max().item() if unit.numel() else 0.0 for unit in units)
    if offsets is None:
        offsets = offsets_of([grad.shape[1]] * len(queries), queries.device)
    question = question_of_rows(queries, documents, offsets)
    grad = grad.flatten().double().abs()
    sums = torch.zeros_like(norms[0]).index_add(0, question, grad)
    found = sums / lengths[0], grad / lengths[1]
    return [largest * each.max().item() if each.numel() else 0.0 for each in found]


def check(queries, documents, offsets, needs=(True, True)):
    """Scores and gradients against float64, allowed twice the error of plain PyTorch."""
    grad = torch.randn(documents.shape[:-1], device=queries.device)
    reference = cosine_scores_reference
    exact = with_gradients(reference, queries.double(), documents.double(), offsets, grad.double())
    plain = with_gradients(reference, queries, documents, offsets, grad)
    actual = with_gradients(cosine_scores, queries, documents, offsets, grad, needs)
    dtypes = (torch.float32, queries.dtype, documents.dtype)
    scales = (1.0, *terms(grad, queries, documents, offsets))
    for found, *expected, dtype, scale, needed in zip(
        actual, exact, plain, dtypes, scales, (True, *needs), strict=True
    ):
        assert (found is not None) == needed
        if needed:
            assert found.dtype == dtype
            assert_close_to(found, *expected, scale=scale)


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
    monkeypatch.setattr(clara_kernels.ragged, "_COLUMNS", 3)
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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [1, 513, 4096, 32_768])
@pytest.mark.parametrize("lengths", [[1], [20] * 3, [5, 0, 1, 33], [20] * 64, [17, 19, 0] * 30])
def test_on_the_gpu(dtype, width, lengths):
    with poisoned("cosine_scores"):
        check(*randoms(lengths, width, dtype, dtype, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "documents"), list(product(FLOATS, FLOATS)))
def test_mixed_dtypes_on_the_gpu(queries, documents):
    with poisoned("cosine_scores"):
        for needs, lengths in product(NEEDS, ([20, 20], [600, 500], [600, 0, 501])):
            check(*randoms(lengths, 1040, queries, documents, "cuda"), needs)


@pytest.mark.gpu
def test_opcheck_on_the_gpu():
    queries, documents, offsets = randoms([3, 0, 1], 48, device="cuda")
    leaves = queries.requires_grad_(), documents.requires_grad_()
    torch.library.opcheck(torch.ops.clara.cosine_scores.default, (*leaves, offsets))


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[20] * 4, [5, 0, 1, 33]])
def test_gpu_graph_and_side_stream(lengths):
    queries, documents, offsets = randoms(lengths, 4096, torch.bfloat16, torch.bfloat16, "cuda")
    grad = torch.randn(documents.shape[:-1], device="cuda")

    def run():
        outputs = torch.ops.clara.cosine_scores(queries, documents, offsets)
        inputs = (grad, queries, documents, offsets, *outputs)
        return outputs[0], *torch.ops.clara.cosine_scores_backward(*inputs, True, True)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    documents.normal_()
    grad.normal_()
    graph.replay()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = run()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    queries, documents, offsets = randoms([5, 0, 1, 33], 64, device="cuda")
    grad = torch.randn(len(documents), device="cuda")
    with_gradients(cosine_scores, queries, documents, offsets, grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradients(cosine_scores, queries, documents, offsets, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
