from importlib import import_module

import numpy as np
import pytest
import torch
from attention_cases import check, random_case, with_gradients
from comparison import IMPLEMENTATIONS, offsets_of, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import memory_attention
from clara_kernels.dispatch import cpu_tensors_use

CASES = {
    "each row sees itself": ([5, 33], 2, 4, 2, 32, 1),
    "two rows": ([70, 4, 40], 3, 2, 1, 32, 2),
    "windows that cut some documents": ([5, 70, 33], 2, 4, 2, 32, 20),
    "as long as the longest document": ([40, 40, 12], 7, 3, 3, 64, 40),
    "longer than any": ([40, 21], 7, 3, 3, 64, 41),
    "unequal memories": ([40, 3, 90], [30, 1, 6], 6, 2, 80, 17),
    "more memory rows than the window": ([75, 60], 40, 8, 1, 96, 9),
    "wide heads": ([67, 20], 4, 2, 1, 256, 30),
    "wider than the kernels": ([12, 7], 3, 2, 1, 260, 4),
    "over many blocks": ([300], 5, 2, 2, 16, 130),
}


@IMPLEMENTATIONS
@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_masked_attention(implementation, memory_only, case):
    *shape, window = case
    dtype = torch.float16 if window % 2 else torch.float32
    with cpu_tensors_use(implementation), poisoned("memory_attention"):
        check(*shape, dtype, memory_only, window=window)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("window", [1, 100, 1024])
def test_on_the_gpu(window, memory_only):
    lengths = [2048, 96, 300, 17, *[80] * 40]
    with poisoned("memory_attention"):
        for width in (64, 128):
            arguments = (lengths, 16, 32, 8, width, torch.bfloat16, memory_only)
            check(*arguments, device="cuda", window=window)


@pytest.mark.slow
@pytest.mark.parametrize("memory_only", [False, True])
@settings(deadline=None, max_examples=8)
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    window=st.integers(1, 100),
    group=st.integers(1, 5),
    width=st.sampled_from([8, 20, 32]),
    implementation=st.sampled_from(["cpu", "triton"]),
    data=st.data(),
)
def test_any_window(memory_only, lengths, window, group, width, implementation, data):
    counts = [data.draw(st.integers(1, length - 1)) for length in lengths]
    with cpu_tensors_use(implementation), poisoned("memory_attention"):
        check(lengths, counts, group, 1, width, torch.float32, memory_only, 0.3, window=window)


@pytest.mark.parametrize("splits", [2, 3, 7])
def test_keys_in_parts(splits, monkeypatch):
    launchers = import_module("clara_kernels.memory_attention.triton")
    monkeypatch.setattr(launchers, "_splits", lambda *_: splits)
    with cpu_tensors_use("triton"), poisoned("memory_attention"):
        check([150, 9, 64], 3, 4, 2, 32, torch.float32, True, window=40)
        check([150, 9], [20, 8], 4, 1, 64, torch.float16, True, window=70)


@IMPLEMENTATIONS
def test_keys_outside_a_window_are_not_read(implementation):
    """What lies outside every window may be anything, and gets a gradient of zero."""
    lengths, memory, window = [200, 150], 4, 30
    q, k, v, grad = random_case(lengths, [memory] * 2, 2, 1, 32, torch.float32, True)
    bounds = offsets_of(lengths)
    seen = torch.zeros(sum(lengths), dtype=torch.bool)
    for end in (200, 350):
        seen[end - memory - window + 1 : end] = True

    def function(*x):
        return memory_attention(*x, bounds, memory, memory_only=True, window=window)

    with cpu_tensors_use(implementation):
        out, *gradients = with_gradients(function, [q, k, v], grad)
        other = [x.masked_fill(~seen[:, None, None], 1e4) for x in (k, v)]
        torch.testing.assert_close(function(q, *other), out, rtol=0, atol=0)
    for gradient in gradients[1:]:
        assert (gradient[~seen] == 0).all()
        assert (gradient[seen].abs().amax((1, 2)) > 0).all()


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_gradients_by_differences(implementation):
    *tensors, _ = random_case([7, 4], [2, 1], 2, 1, 3, torch.float64, False)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    counts = torch.tensor([2, 1], dtype=torch.int32)
    with cpu_tensors_use(implementation):
        assert torch.autograd.gradcheck(
            lambda *x: memory_attention(*x, offsets_of([7, 4]), counts, window=3), leaves
        )


def test_a_window_of_any_integer_type_and_nothing_else():
    *tensors, _ = random_case([6], [2], 2, 1, 8, torch.float32, False)
    arguments = (*tensors, offsets_of([6]), 2)
    expected = memory_attention(*arguments, window=3)
    assert torch.equal(memory_attention(*arguments, window=np.int64(3)), expected)
    assert torch.equal(memory_attention(*arguments, window=2**80), memory_attention(*arguments))
    for wrong in (True, 3.0, "3"):
        with pytest.raises(TypeError, match="window must be an int"):
            memory_attention(*arguments, window=wrong)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        memory_attention(*arguments, window=0)


def test_compiled_in_one_graph():
    *tensors, _ = random_case([30, 20], [2, 2], 2, 1, 16, torch.float32, False)
    bounds = offsets_of([30, 20])

    def function(*x):
        return memory_attention(*x, bounds, 2, window=6)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors), rtol=1e-6, atol=1e-6)


def test_a_document_far_longer_than_a_wide_window(monkeypatch):
    """On the CPU the mask of a piece has few rows, however wide the window is."""
    module = import_module("clara_kernels.memory_attention.cpu")
    monkeypatch.setattr(module, "_MOST_PIECE", 64)
    masks = []
    prepare = module._prepare

    def prepared(*arguments):
        call = prepare(*arguments)
        masks.append(0 if call.mask is None else call.mask[0].numel())
        return call

    monkeypatch.setattr(module, "_prepare", prepared)
    with cpu_tensors_use("cpu"):
        for counts, memory_only in ((3, False), ([250, 20, 7], True)):
            check([390, 90, 8], counts, 4, 2, 16, torch.float32, memory_only, window=150)
    assert 0 < max(masks) <= 2 * 64 * (64 + 150)
