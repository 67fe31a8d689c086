from functools import partial
from importlib import import_module

import pytest
import torch
import triton
from attention_cases import check, random_case, with_gradients
from comparison import IMPLEMENTATIONS, assert_close_to, offsets_of, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import memory_attention
from clara_kernels.dispatch import cpu_tensors_use

CASES = {
    "one row of each kind": ([2], 1, 1, 1, 32),
    "unequal documents": ([5, 70, 33], 2, 4, 2, 32),
    "unequal memories": ([40, 3, 90], [30, 1, 6], 6, 2, 80),
    "no group": ([40, 40], 7, 3, 3, 64),
    "one group of eight": ([75], 16, 8, 1, 96),
    "wide heads": ([37, 20], 4, 2, 1, 256),
    "wider than the kernels": ([12, 7], 3, 2, 1, 260),
}


@IMPLEMENTATIONS
@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_attention_document_by_document(implementation, memory_only, case, dtype):
    with cpu_tensors_use(implementation), poisoned("memory_attention"):
        check(*case, dtype, memory_only)


@pytest.mark.parametrize("implementation", ["cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_three_hundred_documents(implementation):
    lengths = [2 + i % 2 for i in range(300)]
    *tensors, grad = random_case(lengths, [1] * 300, 1, 1, 16, torch.float32, False)
    bounds = offsets_of(lengths)

    def function(*x):
        return memory_attention(*x, bounds, 1)

    with cpu_tensors_use("reference"):
        exact = with_gradients(function, [x.double() for x in tensors], grad.double())
    with cpu_tensors_use(implementation), poisoned("memory_attention"):
        actual = with_gradients(function, tensors, grad)
    for one, wide in zip(actual, exact, strict=True):
        assert_close_to(one, wide, scale=8)


@pytest.mark.slow
@pytest.mark.parametrize("memory_only", [False, True])
@settings(deadline=None, max_examples=8)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=4),
    group=st.integers(1, 5),
    kv_heads=st.integers(1, 2),
    width=st.sampled_from([8, 20, 32, 48]),
    implementation=st.sampled_from(["cpu", "triton"]),
    data=st.data(),
)
def test_any_shape(memory_only, lengths, group, kv_heads, width, implementation, data):
    counts = [data.draw(st.integers(1, length - 1)) for length in lengths]
    with cpu_tensors_use(implementation), poisoned("memory_attention"):
        check(lengths, counts, group * kv_heads, kv_heads, width, torch.float32, memory_only, 0.3)


@pytest.mark.parametrize("splits", [2, 3, 7])
def test_keys_in_parts(splits, monkeypatch):
    """Also with more parts than blocks of keys, some of them empty."""
    launchers = import_module("clara_kernels.memory_attention.triton")
    monkeypatch.setattr(launchers, "_splits", lambda *_: splits)
    with cpu_tensors_use("triton"), poisoned("memory_attention"):
        check([150, 9, 64], 3, 4, 2, 32, torch.float32, True)
        check([150, 9], [20, 8], 4, 1, 64, torch.float16, True)


def test_keys_are_split_only_where_programs_are_few():
    from clara_kernels.memory_attention.triton import _splits

    cpu = torch.device("cpu")  # counted as 132 multiprocessors
    assert _splits(8, 2048, 64, cpu) == 16
    assert _splits(100, 2048, 64, cpu) == 3
    assert _splits(8, 200, 64, cpu) == 1
    assert _splits(5000, 2048, 64, cpu) == 1


@pytest.mark.parametrize("memory_only", [False, True])
def test_gradcheck(memory_only):
    *tensors, _ = random_case([4, 3], [2, 1], 2, 1, 3, torch.float64, memory_only)
    bounds, counts = offsets_of([4, 3]), torch.tensor([2, 1], dtype=torch.int32)

    def function(*x):
        return memory_attention(*x, bounds, counts, memory_only=memory_only)

    leaves = [x.requires_grad_() for x in tensors]
    for implementation in ("reference", "cpu"):
        with cpu_tensors_use(implementation):
            assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("memory_only", [False, True])
def test_what_is_kept_of_a_layout_serves_every_later_call(memory_only):
    """Also if the first call was made in inference mode."""
    case = [31, 44, 31], [5, 9, 5], 4, 2, 16, torch.float32, memory_only
    *tensors, _ = random_case(*case)
    bounds, counts = offsets_of(case[0]), torch.tensor(case[1], dtype=torch.int32)
    with cpu_tensors_use("cpu"), torch.inference_mode():
        memory_attention(*tensors, bounds, counts, memory_only=memory_only)
    with cpu_tensors_use("cpu"):
        check(*case)
        check(*case, window=12)
        check(*case[:5], torch.float16, memory_only)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_are_those_that_compiled_code_expects(dtype):
    """Also of the gradients of transposed heads, which models pass."""
    bounds, counts = offsets_of([30, 40]), torch.tensor([3, 3], dtype=torch.int32)
    shapes = (4, 70, 16), (2, 70, 16), (2, 70, 16)
    q, k, v = (torch.randn(shape, dtype=dtype).transpose(0, 1) for shape in shapes)
    rest = (bounds, counts, False, 0.25, 0)
    operators = torch.ops.clara
    out, lse = operators.memory_attention(q, k, v, *rest)
    check_fake = partial(torch.library.opcheck, test_utils="test_faketensor")
    check_fake(operators.memory_attention.default, (q, k, v, *rest))
    grad = torch.randn_like(out)
    check_fake(operators.memory_attention_backward.default, (grad, q, k, v, out, lse, *rest))


def test_gradients_in_bfloat16_are_rounded_once():
    """They are as near to the exact ones as their dtype allows."""
    lengths = [60, 35]
    *tensors, grad = (
        x.bfloat16() for x in random_case(lengths, [9, 9], 6, 2, 32, torch.float32, False)
    )
    bounds = offsets_of(lengths)

    def function(*x):
        return memory_attention(*x, bounds, 9)

    with cpu_tensors_use("reference"):
        exact = with_gradients(function, [x.double() for x in tensors], grad.double())
    with cpu_tensors_use("cpu"):
        actual = with_gradients(function, tensors, grad)
    for one, wide in zip(actual[1:], exact[1:], strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - wide).norm() <= 2**-8 * wide.norm()


@IMPLEMENTATIONS
def test_memory_only_is_the_memory_rows_of_all_rows(implementation):
    lengths, m = [20, 33], 4
    q, k, v, _ = random_case(lengths, [m, m], 4, 2, 32, torch.float32, False)
    bounds = offsets_of(lengths)
    rows = torch.cat([torch.arange(end - m, end) for end in bounds[1:].tolist()])
    with cpu_tensors_use(implementation):
        every = memory_attention(q, k, v, bounds, m)
        memory = memory_attention(q[rows], k, v, bounds, m, memory_only=True)
    torch.testing.assert_close(memory, every[rows])


@IMPLEMENTATIONS
def test_documents_do_not_see_each_other(implementation):
    lengths = [9, 17, 6]
    q, k, v, _ = random_case(lengths, [2] * 3, 2, 2, 32, torch.float32, False)
    with cpu_tensors_use(implementation):
        before = memory_attention(q, k, v, offsets_of(lengths), 2)
        k[9:26], v[9:26] = torch.nan, torch.inf
        after = memory_attention(q, k, v, offsets_of(lengths), 2)
    assert torch.equal(before[:9], after[:9])
    assert torch.equal(before[26:], after[26:])


@IMPLEMENTATIONS
def test_views_of_one_projection(implementation):
    """Rows apart, and heads apart, as fused projections and transposed heads give them."""
    lengths, heads, width = [12, 30], 2, 32
    fused = torch.randn(42, 3 * heads, width)
    q, k, v = fused.split(heads, dim=1)
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    bounds = offsets_of(lengths)
    with cpu_tensors_use(implementation):
        expected = memory_attention(*(x.contiguous() for x in (q, k, v)), bounds, 2)
        assert torch.equal(memory_attention(q, k, v, bounds, 2), expected)
        assert torch.equal(memory_attention(*transposed, bounds, 2), expected)


def test_repeats_to_the_bit():
    *tensors, grad = random_case([40, 70], [8, 8], 4, 2, 32, torch.float16, False)
    bounds = offsets_of([40, 70])
    with cpu_tensors_use("triton"):
        runs = [
            with_gradients(lambda *x: memory_attention(*x, bounds, 8), tensors, grad)
            for _ in range(2)
        ]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("memory_only", [False, True])
def test_opcheck(memory_only, window):
    q, k, v, _ = random_case([5, 9], [2, 3], 4, 2, 16, torch.float32, memory_only)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    counts = torch.tensor([2, 3], dtype=torch.int32)
    arguments = (*leaves, offsets_of([5, 9]), counts, memory_only, 0.25, window)
    torch.library.opcheck(torch.ops.clara.memory_attention, arguments)
    with torch.no_grad():
        out, lse = torch.ops.clara.memory_attention(*arguments)
        torch.library.opcheck(
            torch.ops.clara.memory_attention_backward,
            (torch.randn_like(out), q, k, v, out, lse, *arguments[3:]),
        )


def test_one_compiled_graph_serves_all_lengths():
    torch._dynamo.reset()
    compiled = torch.compile(memory_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ([5, 9], [7, 3], [30, 40, 6], [8, 9, 10, 11], [50], [17, 13]):
        *tensors, grad = random_case(lengths, [2] * len(lengths), 4, 2, 16, torch.float32, False)
        bounds = offsets_of(lengths)
        with torch.compiler.set_stance("default" if len(lengths) == 2 else "fail_on_recompile"):
            actual = with_gradients(lambda *x: compiled(*x, bounds, 2), tensors, grad)  # noqa: B023
        expected = with_gradients(lambda *x: memory_attention(*x, bounds, 2), tensors, grad)  # noqa: B023
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def test_under_autocast_it_computes_like_pytorchs_attention():
    *tensors, _ = random_case([6, 9], [2, 2], 2, 2, 16, torch.float32, False)
    tensors[1] = tensors[1].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = memory_attention(*tensors, offsets_of([6, 9]), 2)
    expected = memory_attention(*(x.bfloat16() for x in tensors), offsets_of([6, 9]), 2)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


def test_documents_without_memory():
    """Only with `memory_only` does anything depend on the number of memory rows."""
    q, k, v, _ = random_case([1, 9], [1, 1], 4, 2, 16, torch.float32, False)
    bounds = offsets_of([1, 9])
    for implementation in ("reference", "cpu", "triton"):
        with cpu_tensors_use(implementation):
            out = memory_attention(q, k, v, bounds, 0)
            alone = memory_attention(q[1:], k[1:], v[1:], offsets_of([9]), 3)
            torch.testing.assert_close(out[1:], alone)
            torch.testing.assert_close(out[0], v[0].repeat_interleave(2, 0))
            with pytest.raises(ValueError, match="n_memory must be at least 1, got 0"):
                memory_attention(q[:0], k, v, bounds, 0, memory_only=True)


@IMPLEMENTATIONS
@pytest.mark.parametrize("splits", [1, 3])
def test_a_document_without_rows_where_values_are_not_checked(implementation, splits, monkeypatch):
    launchers = import_module("clara_kernels.memory_attention.triton")
    monkeypatch.setattr(launchers, "_splits", lambda *_: splits)
    q, k, v, _ = random_case([80, 70], [2, 2], 4, 2, 16, torch.float32, True)
    expected = memory_attention(q, k, v, offsets_of([80, 70]), 2, memory_only=True)
    counts = torch.tensor(2, dtype=torch.int32)
    # A third document, without rows, whose queries come last.
    queries = torch.cat([q, q[:2]])
    with cpu_tensors_use(implementation):
        out, _ = torch.ops.clara.memory_attention(
            queries, k, v, offsets_of([80, 70, 0]), counts, True, 0.25, 0
        )
    torch.testing.assert_close(out[:4], expected)
    assert not out[4:].any() or implementation == "reference"  # it has no row to leave out


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_before_the_first_document(backwards, monkeypatch):
    """Tiles before it write nothing, in whatever order programs run."""
    builder = type(triton.runtime.interpreter.interpreter_builder)
    forwards = builder.set_grid_idx

    def set_grid_idx(self, *index):
        last = self.grid_dim
        mirrored = [last[axis] - 1 - i for axis, i in enumerate(index)]
        forwards(self, *(mirrored if backwards else index))

    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx)
    first, lengths = 64, [40, 30]
    *tensors, grad = random_case([first, *lengths], [2] * 3, 8, 2, 32, torch.float32, False)
    bounds, counts = offsets_of(lengths), torch.tensor(2, dtype=torch.int32)
    own = [x[first:] for x in tensors]
    expected = with_gradients(lambda *x: memory_attention(*x, bounds, 2), own, grad[first:])
    with cpu_tensors_use("triton"):
        rest = (bounds + first, counts, False, 32**-0.5, 0)
        out, lse = torch.ops.clara.memory_attention(*tensors, *rest)
        backward = torch.ops.clara.memory_attention_backward
        gradients = backward(grad, *tensors, out, lse, *rest)
    for one, other in zip((out, *gradients), expected, strict=True):
        torch.testing.assert_close(one[first:], other, rtol=1e-4, atol=1e-5)


@IMPLEMENTATIONS
def test_no_queries(implementation):
    q, k, v, _ = random_case([5, 9], [2, 2], 4, 2, 16, torch.float32, False)
    counts = torch.zeros((), dtype=torch.int32)
    arguments = (k, v, offsets_of([5, 9]), counts, True, 0.25, 0)
    with cpu_tensors_use(implementation):
        out, lse = torch.ops.clara.memory_attention(q[:0], *arguments)
        assert out.shape == (0, 4, 16)
        gradients = torch.ops.clara.memory_attention_backward(
            out, q[:0], *arguments[:2], out, lse, *arguments[2:]
        )
    assert [x.shape for x in gradients] == [q[:0].shape, k.shape, v.shape]
    assert not any(x.any() for x in gradients)


def test_bad_arguments():
    q, k, v, _ = random_case([5, 9], [2, 2], 4, 2, 16, torch.float32, False)
    bounds = offsets_of([5, 9])

    def refuse(error, match, *arguments, **options):
        with pytest.raises(error, match=match):
            memory_attention(*arguments, **options)

    refuse(TypeError, "q must be floating point", q.int(), k, v, bounds, 2)
    refuse(
        TypeError, "k must be torch.float32 as q is, got torch.float16", q, k.half(), v, bounds, 2
    )
    refuse(ValueError, "q must have shape .T, heads, head_dim.", q[0], k, v, bounds, 2)
    refuse(ValueError, "k must have shape .T, kv_heads, 16.", q, k[..., :8], v, bounds, 2)
    refuse(ValueError, "v must have shape .14, 2, 16.", q, k, v[:3], bounds, 2)
    refuse(ValueError, "multiple of k's 2 heads, got 3", q[:, :3], k, v, bounds, 2)
    refuse(ValueError, "q must have shape .14", q[:5], k, v, bounds, 2)
    refuse(ValueError, "cu_seqlens must end at 14", q, k, v, bounds[:2], 2)
    refuse(TypeError, "cu_seqlens must be int32", q, k, v, bounds.long(), 2)
    refuse(ValueError, "document 0 has 5 rows, of which n_memory takes 5", q, k, v, bounds, 5)
    refuse(ValueError, "document 1 has 0 rows", q, k, v, offsets_of([5, 0, 9]), 2)
    refuse(ValueError, "at least one document", q[:0], k[:0], v[:0], bounds[:1], 2)
    refuse(ValueError, "n_memory must be at least 0, got -1", q, k, v, bounds, -1)
    refuse(TypeError, "n_memory must be an int, got float", q, k, v, bounds, 2.0)
    counts = torch.tensor([2, 3], dtype=torch.int32)
    refuse(TypeError, "n_memory must be an int or int32", q, k, v, bounds, counts.long())
    refuse(ValueError, "n_memory must have shape .2.", q, k, v, bounds, counts[:1])
    refuse(
        ValueError, "as many memory rows for each of 2", q[:3], k, v, bounds, 2, memory_only=True
    )
    refuse(ValueError, "q must have shape .5, 4", q[:4], k, v, bounds, counts, memory_only=True)
    refuse(ValueError, "q must have shape .4, 4", q[:6], k, v, bounds, 2, memory_only=True)
    none = torch.randn(14, 1, 0)
    refuse(ValueError, "head_dim of at least 1, got 0", none, none, none, bounds, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_on_the_gpu(case, dtype, memory_only):
    with poisoned("memory_attention"):
        check(*case, dtype, memory_only, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("width", [64, 128])
def test_long_and_short_documents_on_the_gpu(width, memory_only):
    lengths = [2048, 96, 300, 17, *[80] * 40]
    with poisoned("memory_attention"):
        check(lengths, 16, 32, 8, width, torch.bfloat16, memory_only, device="cuda")
        check([2048], 16, 8, 2, width, torch.bfloat16, memory_only, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("memory_only", [False, True])
def test_in_a_cuda_graph(memory_only):
    """Lengths may change between replays: they are looked up on the device."""
    lengths = [2000, 33]
    *tensors, grad = random_case(lengths, [4, 4], 8, 2, 64, torch.bfloat16, memory_only, "cuda")
    bounds = offsets_of(lengths, "cuda")

    def run():
        counts = torch.full((), 4, dtype=torch.int32, device="cuda")
        rest = (bounds, counts, memory_only, 0.125, 0)
        outputs = torch.ops.clara.memory_attention(*tensors, *rest)
        backward = torch.ops.clara.memory_attention_backward
        return outputs[0], *backward(grad, *tensors, *outputs, *rest)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    tensors[0].normal_()
    bounds.copy_(offsets_of([700, 1333], "cuda"))
    graph.replay()
    for one, other in zip(captured, run(), strict=True):
        assert torch.equal(one, other)
