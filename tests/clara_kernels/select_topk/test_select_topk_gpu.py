"""`select_topk` on a GPU."""

import pytest
import torch
from comparison import offsets_of, poisoned
from selection_cases import FLOATS, MEANINGS, SHAPES, check, leaves, opchecks, randoms

from clara_kernels import select_topk


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
