from importlib import import_module
from itertools import product

import pytest
import torch
from comparison import IMPLEMENTATIONS, assert_close_to, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels.dispatch import cpu_tensors_use
from clara_kernels.memory_alignment_loss import cpu, memory_alignment_loss, reference
from clara_kernels.memory_alignment_loss.reference import memory_alignment_loss_reference

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum"])


def by_document(hidden, lengths, n_memory, reduction="mean"):
    """One document at a time, in the dtype of `hidden`."""
    distances = []
    for rows, memory in zip(hidden.split(lengths), n_memory, strict=True):
        gap = rows[:-memory].mean(0) - rows[-memory:].mean(0)
        distances.append(gap.square().mean() if reduction == "mean" else gap.square().sum())
    return torch.stack(distances).mean()


def cumulative(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def counts(n_memory):
    return torch.tensor(n_memory, dtype=torch.int32)


def with_gradient(function, hidden, *arguments, scale=1.0, **options):
    hidden = hidden.detach().clone().requires_grad_()
    loss = function(hidden, *arguments, **options)
    (loss * scale).backward()
    return loss.detach(), hidden.grad


def check(hidden, lengths, n_memory, reduction="mean", scale=1.0):
    """Value and gradient against float64, allowed twice the error of plain PyTorch."""
    device = hidden.device
    offsets, memory = cumulative(lengths).to(device), counts(n_memory).to(device)
    rest, options = (lengths, n_memory), {"reduction": reduction, "scale": scale}
    exact = with_gradient(by_document, hidden.double(), *rest, **options)
    plain = with_gradient(
        memory_alignment_loss_reference, hidden, offsets, memory, reduction=reduction, scale=scale
    )
    actual = with_gradient(memory_alignment_loss, hidden, offsets, memory, **options)
    assert actual[0].dtype == torch.float32
    assert actual[1].dtype == hidden.dtype
    # The rounding errors of means as large as the states remain where the means cancel.
    width = hidden.shape[1] if reduction == "sum" else 1
    size = hidden.double().square().mean().item() * width
    cancelled = max(size / max(exact[0].item(), 1e-30), 1.0) ** 0.5
    for one, other, expected in zip(actual, plain, exact, strict=True):
        assert_close_to(one, expected, other, scale=expected.abs().max().item() * cancelled)


documents = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(
    documents=documents,
    width=st.integers(1, 17),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 2**31),
)
def test_equals_one_document_at_a_time(documents, width, reduction, seed):
    lengths = [tokens + memory for tokens, memory in documents]
    n_memory = [memory for _, memory in documents]
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), width, generator=generator, dtype=torch.float64)
    rest = (cumulative(lengths), counts(n_memory))
    expected = with_gradient(by_document, hidden, lengths, n_memory, reduction=reduction)
    for function in (memory_alignment_loss, memory_alignment_loss_reference):
        found = with_gradient(function, hidden, *rest, reduction=reduction)
        torch.testing.assert_close(found, expected)


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=15)
@given(
    documents=documents,
    width=st.integers(1, 40),
    dtype=st.sampled_from(FLOATS),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 2**31),
)
def test_any_documents(implementation, documents, width, dtype, reduction, seed):
    lengths = [tokens + memory for tokens, memory in documents]
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), width, generator=generator).to(dtype)
    with cpu_tensors_use(implementation), poisoned("memory_alignment_loss"):
        check(hidden, lengths, [memory for _, memory in documents], reduction)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("lengths", "width", "reduction"),
    [
        ([2], 1, "mean"),  # a token row and a memory row
        ([40], 576, "sum"),
        ([33, 4, 16, 65], 300, "mean"),
        ([3, 64, 128, 2, 63, 65, 129], 33, "sum"),
        ([400, 300], 16, "mean"),
        ([17, 90, 44], 1040, "sum"),
    ],
)
def test_every_implementation(implementation, dtype, lengths, width, reduction):
    hidden = (torch.randn(sum(lengths), width) + 0.5).to(dtype)
    n_memory = [min(16, length - 1) for length in lengths]
    with cpu_tensors_use(implementation), poisoned("memory_alignment_loss"):
        check(hidden, lengths, n_memory, reduction, scale=64.0)


@IMPLEMENTATIONS
def test_many_documents(implementation):
    lengths = [2 + (7 * i) % 11 for i in range(300)]
    hidden = torch.randn(sum(lengths), 9)
    with cpu_tensors_use(implementation), poisoned("memory_alignment_loss"):
        check(hidden, lengths, [1 + i % (length - 1) for i, length in enumerate(lengths)])


def test_gradient_of_more_documents_than_are_looked_up_at_once():
    lengths = [0] * 1020 + [5, 70] * 10  # those without rows are refused by the public function
    offsets, n_memory = cumulative(lengths), counts(1)
    difference = torch.randn(1040, 3)
    arguments = (torch.tensor(2.0), difference, offsets, n_memory, sum(lengths))
    expected = reference.backward(*arguments, torch.float32, True)
    with cpu_tensors_use("triton"), poisoned("memory_alignment_loss"):
        found = torch.ops.clara.memory_alignment_loss_backward(*arguments, torch.float32, True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("chunk", "width"), [(64, 48), (64, 261), (256, 21)])
def test_documents_in_parts(chunk, width, monkeypatch):
    module = import_module("clara_kernels.memory_alignment_loss.triton")
    monkeypatch.setattr(module, "_chunk", lambda *sizes: chunk)
    lengths = [chunk + 1, 2, 2 * chunk, chunk, 3, chunk - 5, 2 * chunk + 7]
    n_memory = [1, 1, 2 * chunk - 1, 5, 2, 16, chunk + 3]
    with cpu_tensors_use("triton"), poisoned("memory_alignment_loss"):
        check(torch.randn(sum(lengths), width), lengths, n_memory)


def test_more_parts_than_are_added_up_at_once():
    with cpu_tensors_use("triton"), poisoned("memory_alignment_loss"):
        check(torch.randn(35 * 64, 5), [34 * 64, 64], [64, 3])


def test_programs_fill_a_device():
    module = import_module("clara_kernels.memory_alignment_loss.triton")
    for rows, documents, blocks in product([10, 3000, 60_000], [1, 20, 500], [1, 8]):
        chunk = module._chunk(rows, documents, blocks)
        enough = max(rows // chunk, documents) * blocks >= module._ENOUGH_PROGRAMS
        assert enough or chunk == 64
    assert module._chunk(10**6, 1, 8) == 1024


@IMPLEMENTATIONS
def test_hand_computed(implementation):
    hidden = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 1.0], [0.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
    cu_seqlens = torch.tensor([0, 3, 6], dtype=torch.int32)
    with cpu_tensors_use(implementation):
        # Gaps: (2, 2) - (5, 1) = (-3, 1) and (0.5, 0.5) - (3, 1) = (-2.5, -0.5).
        assert memory_alignment_loss(hidden, cu_seqlens, 1).item() == (10 / 2 + 6.5 / 2) / 2
        loss = memory_alignment_loss(hidden, cu_seqlens, 1, reduction="sum")
        assert loss.item() == (10 + 6.5) / 2
        # With two memory rows: (1, 2) - (4, 1.5) and (0, 0) - (2, 1).
        assert memory_alignment_loss(hidden, cu_seqlens, 2).item() == (9.25 / 2 + 5 / 2) / 2
        _, grad = with_gradient(memory_alignment_loss, hidden, cu_seqlens, 1)
    # gap / 2 for the memory row, the opposite shared by the token rows.
    expected = torch.tensor([[-0.75, 0.25], [-0.75, 0.25], [1.5, -0.5]])
    torch.testing.assert_close(grad[:3], expected)


@REDUCTIONS
def test_gradcheck(reduction):
    hidden = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    cu_seqlens = torch.tensor([0, 4, 11], dtype=torch.int32)
    for function in (memory_alignment_loss, memory_alignment_loss_reference):
        for n_memory in (3, counts([1, 6])):
            assert torch.autograd.gradcheck(
                lambda x, f=function, m=n_memory: f(x, cu_seqlens, m, reduction=reduction),
                (hidden,),
            )


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", FLOATS)
def test_lower_dtypes_accumulate_in_float32(implementation, dtype):
    lengths = [300, 17, 500]
    hidden = (torch.randn(sum(lengths), 33) + 3).to(dtype)
    with cpu_tensors_use(implementation):
        loss, grad = with_gradient(memory_alignment_loss, hidden, cumulative(lengths), 16)
    assert loss.dtype == torch.float32
    expected, wide = with_gradient(by_document, hidden.double(), lengths, [16] * 3)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    assert grad.dtype == dtype
    # Triton's interpreter cuts bfloat16 off where a GPU rounds it.
    unit = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 1e-4}[dtype]
    floor = 6e-8 if dtype == torch.float16 else 2e-8
    torch.testing.assert_close(grad.double(), wide, rtol=unit, atol=floor)


@IMPLEMENTATIONS
def test_one_number_of_memory_rows_equals_a_tensor_of_it(implementation):
    hidden, cu_seqlens = torch.randn(20, 6), torch.tensor([0, 9, 20], dtype=torch.int32)
    with cpu_tensors_use(implementation):
        found = [
            with_gradient(memory_alignment_loss, hidden, cu_seqlens, n_memory)
            for n_memory in (4, counts(4), counts([4, 4]), counts([4, 9, 4])[::2])
        ]
    for loss, grad in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(grad, found[0][1])


@IMPLEMENTATIONS
def test_documents_weigh_the_same_whatever_their_length(implementation):
    long, short = torch.randn(50, 4), torch.randn(5, 4)
    with cpu_tensors_use(implementation):
        both = memory_alignment_loss(torch.cat([long, short]), cumulative([50, 5]), 2)
        alone = [memory_alignment_loss(x, cumulative([len(x)]), 2) for x in (long, short)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


@IMPLEMENTATIONS
def test_hidden_states_that_are_not_contiguous(implementation):
    wide = torch.randn(20, 12)
    grad_of = torch.ones(()).expand(())
    for hidden in (wide[:, :7], wide[:, ::2], torch.randn(7, 20).T, wide[::2].repeat(2, 1)[:, 1:]):
        with cpu_tensors_use(implementation):
            found = with_gradient(memory_alignment_loss, hidden, cumulative([9, 11]), 3)
        expected = with_gradient(by_document, hidden, [9, 11], [3, 3], scale=grad_of)
        torch.testing.assert_close(found, expected)


@IMPLEMENTATIONS
def test_rows_outside_and_incomplete_documents(implementation):
    """What is refused where values are looked at has to be harmless where they are not."""
    offsets, n_memory = counts([3, 9, 20]), counts([2, 4])
    hidden = torch.randn(100, 6)
    hidden[:3], hidden[20:] = torch.nan, torch.nan
    inner = hidden[3:20]
    expected, expected_grad = with_gradient(by_document, inner, [6, 11], [2, 4])
    grad = torch.ones(())
    with cpu_tensors_use(implementation), poisoned("memory_alignment_loss"):
        loss, difference = torch.ops.clara.memory_alignment_loss(hidden, offsets, n_memory, True)
        torch.testing.assert_close(loss, expected)
        rest = (offsets, n_memory, 100, torch.float32, True)
        found = torch.ops.clara.memory_alignment_loss_backward(grad, difference, *rest)
        torch.testing.assert_close(found[3:20], expected_grad)
        assert found[:3].eq(0).all()
        assert found[20:].eq(0).all()

        # Of four documents one has no rows, one no token rows, one no memory rows.
        offsets, n_memory = counts([0, 5, 5, 8, 13]), counts([2, 1, 3, 0])
        arguments = (torch.randn(15, 6), offsets, n_memory)
        loss, difference = torch.ops.clara.memory_alignment_loss(*arguments, True)
        assert loss.isnan()
        assert difference[0].isfinite().all()
        assert difference[1:].isnan().all()
        rest = (offsets, n_memory, 15, torch.float32, True)
        found = torch.ops.clara.memory_alignment_loss_backward(grad, difference, *rest)
        assert found[:5].isfinite().all()
        assert found[5:13].isnan().all()
        assert found[13:].eq(0).all()


def test_slices_of_many_rows_are_put_together(monkeypatch):
    monkeypatch.setattr(cpu, "_SLICE_VALUES", 200)
    hidden = torch.randn(97, 30, dtype=torch.float64)
    rest = (counts([0, 40, 97]), counts([5, 2]))
    loss, difference = cpu.forward(hidden, *rest, True)
    expected = reference.forward(hidden, *rest, True)
    torch.testing.assert_close((loss, difference), expected)
    after = (torch.tensor(3.0, dtype=torch.float64), difference, *rest, 97, torch.float64, True)
    torch.testing.assert_close(cpu.backward(*after), reference.backward(*after))


def test_nothing_of_the_size_of_hidden_is_kept():
    hidden = torch.randn(200, 8, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        memory_alignment_loss(hidden, cumulative([90, 110]), 4)
    assert sorted(kept) == [1, 3, 16]


def test_opcheck():
    hidden = torch.randn(11, 5)
    for n_memory, mean in ((counts(3), True), (counts([1, 6]), False)):
        rest = (counts([0, 4, 11]), n_memory)
        arguments = (hidden.clone().requires_grad_(), *rest, mean)
        torch.library.opcheck(torch.ops.clara.memory_alignment_loss.default, arguments)
        loss, difference = torch.ops.clara.memory_alignment_loss(hidden, *rest, mean)
        arguments = (torch.randn_like(loss), difference, *rest, 11, torch.float16, mean)
        torch.library.opcheck(torch.ops.clara.memory_alignment_loss_backward.default, arguments)


@pytest.mark.parametrize(
    ("backend", "per_document"),
    [
        ("aot_eager", False),
        ("aot_eager", True),
        pytest.param("inductor", True, marks=pytest.mark.slow),
    ],
)
def test_one_compiled_graph_serves_all_lengths(backend, per_document):
    torch._dynamo.reset()
    compiled = torch.compile(memory_alignment_loss, fullgraph=True, dynamic=True, backend=backend)
    for lengths, width, memory in (
        ([9, 11], 6, 3),
        ([12, 4, 13], 9, 2),
        ([40, 5, 6, 7, 8, 9], 17, 4),
    ):
        hidden = torch.randn(sum(lengths), width)
        n_memory = counts([memory] * len(lengths)) if per_document else memory
        arguments = (hidden, cumulative(lengths), n_memory)
        expected = with_gradient(memory_alignment_loss, *arguments)
        stance = "fail_on_recompile" if len(lengths) > 3 else "default"
        with torch.compiler.set_stance(stance):
            found = with_gradient(compiled, *arguments)
        torch.testing.assert_close(found, expected)


@IMPLEMENTATIONS
def test_under_autocast(implementation):
    hidden = torch.randn(30, 12)
    arguments = (hidden, cumulative([13, 17]), 4)
    with cpu_tensors_use(implementation):
        expected = with_gradient(memory_alignment_loss, *arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = with_gradient(memory_alignment_loss, *arguments)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_bad_arguments():
    hidden, cu_seqlens = torch.randn(10, 4), torch.tensor([0, 4, 10], dtype=torch.int32)
    with pytest.raises(TypeError, match=r"hidden must be floating point, got torch\.int64"):
        memory_alignment_loss(hidden.long(), cu_seqlens, 1)
    with pytest.raises(ValueError, match=r"hidden must have shape \[T, H\] with H of at least 1"):
        memory_alignment_loss(hidden[None], cu_seqlens, 1)
    with pytest.raises(ValueError, match=r"hidden must have shape .*, got \[10, 0\]"):
        memory_alignment_loss(hidden[:, :0], cu_seqlens, 1)
    with pytest.raises(TypeError, match=r"cu_seqlens must be int32, got torch\.int64"):
        memory_alignment_loss(hidden, cu_seqlens.long(), 1)
    with pytest.raises(ValueError, match="cu_seqlens must end at 9, the rows of hidden, got 10"):
        memory_alignment_loss(hidden[:9], cu_seqlens, 1)
    with pytest.raises(ValueError, match="cu_seqlens must hold at least one document"):
        memory_alignment_loss(hidden[:0], cu_seqlens[:1], 1)
    with pytest.raises(ValueError, match=r"cu_seqlens must be on the device of hidden \(cpu\)"):
        memory_alignment_loss(hidden, cu_seqlens.to("meta"), 1)
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'none'"):
        memory_alignment_loss(hidden, cu_seqlens, 1, reduction="none")
    with pytest.raises(TypeError, match="n_memory must be an int, got float"):
        memory_alignment_loss(hidden, cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="n_memory must be at least 1, got 0"):
        memory_alignment_loss(hidden, cu_seqlens, 0)
    with pytest.raises(TypeError, match=r"n_memory must be an int or int32, got torch\.int64"):
        memory_alignment_loss(hidden, cu_seqlens, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"n_memory must have shape \[2\] or \[\], got \[3\]"):
        memory_alignment_loss(hidden, cu_seqlens, torch.ones(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="n_memory must be at least 1, got 0 for document 1"):
        memory_alignment_loss(hidden, cu_seqlens, counts([1, 0]))
    with pytest.raises(ValueError, match="document 0 has 4 rows, of which n_memory takes 4"):
        memory_alignment_loss(hidden, cu_seqlens, 4)
    with pytest.raises(ValueError, match="document 1 has 6 rows, of which n_memory takes 7"):
        memory_alignment_loss(hidden, cu_seqlens, counts([1, 7]))


@pytest.mark.gpu
@REDUCTIONS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("lengths", "width"),
    [
        ([2], 1),
        ([5000], 4096),  # in parts of 64 rows
        ([30_000, 17, 2], 2048),
        ([112] * 90 + [3000, 20], 4096),
        ([3, 64, 128, 2, 63, 65, 129, 1000], 577),
        ([2 + (7 * i) % 90 for i in range(3000)], 576),
    ],
)
def test_on_the_gpu(reduction, dtype, lengths, width):
    n_memory = [min(16, length - 1) for length in lengths]
    hidden = (torch.randn(sum(lengths), width, device="cuda") + 0.5).to(dtype)
    with poisoned("memory_alignment_loss"):
        check(hidden, lengths, n_memory, reduction, scale=64.0)


@pytest.mark.gpu
def test_gpu_graph_takes_other_lengths_and_gives_the_same_bits():
    hidden = torch.randn(3000, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    offsets, memory = cumulative([1000, 2000]).cuda(), counts([4, 5]).cuda()

    def step():
        loss = memory_alignment_loss(hidden, offsets, memory)
        return loss, torch.autograd.grad(loss, hidden)[0]

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        hidden.normal_()
        offsets.copy_(counts([0, 70, 2500]))  # the last rows belong to no document
        memory.copy_(counts([69, 1]))
    graph.replay()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))
    assert captured[1][2500:].eq(0).all()
    assert captured[1][:2500].ne(0).any(1).all()


@pytest.mark.gpu
def test_gpu_opcheck_and_float64():
    hidden = torch.randn(11, 5, device="cuda", requires_grad=True)
    rest = (counts([0, 4, 11]).cuda(), counts(3).cuda())
    torch.library.opcheck(torch.ops.clara.memory_alignment_loss.default, (hidden, *rest, True))
    exact = with_gradient(memory_alignment_loss, hidden.double(), *rest)
    expected = with_gradient(by_document, hidden.double(), [4, 7], [3, 3])
    torch.testing.assert_close(exact, expected)
