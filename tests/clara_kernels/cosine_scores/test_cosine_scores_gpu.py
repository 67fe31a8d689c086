"""`cosine_scores` on a GPU."""

from itertools import product

import pytest
import torch
from comparison import poisoned
from cosine_cases import FLOATS, NEEDS, check, randoms, with_gradients

from clara_kernels import cosine_scores


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
