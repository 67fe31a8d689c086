import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import memory_alignment_loss


def by_document(hidden, lengths, n_memory, reduction="mean"):
    """One document at a time, in float64."""
    distances = []
    for rows, memory in zip(hidden.double().split(lengths), n_memory, strict=True):
        gap = rows[:-memory].mean(0) - rows[-memory:].mean(0)
        distances.append(gap.square().mean() if reduction == "mean" else gap.square().sum())
    return torch.stack(distances).mean()


def cumulative(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


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
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = memory_alignment_loss(
        ours, cumulative(lengths), torch.tensor(n_memory, dtype=torch.int32), reduction=reduction
    )
    expected = by_document(theirs, lengths, n_memory, reduction)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_hand_computed():
    hidden = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 1.0], [0.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
    cu_seqlens = torch.tensor([0, 3, 6], dtype=torch.int32)
    # Gaps: (2, 2) - (5, 1) = (-3, 1) and (0.5, 0.5) - (3, 1) = (-2.5, -0.5).
    assert memory_alignment_loss(hidden, cu_seqlens, 1).item() == (10 / 2 + 6.5 / 2) / 2
    assert memory_alignment_loss(hidden, cu_seqlens, 1, reduction="sum").item() == (10 + 6.5) / 2
    # With two memory rows: (1, 2) - (4, 1.5) and (0, 0) - (2, 1).
    assert memory_alignment_loss(hidden, cu_seqlens, 2).item() == (9.25 / 2 + 5 / 2) / 2


def test_gradcheck():
    hidden = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    cu_seqlens = torch.tensor([0, 4, 11], dtype=torch.int32)
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, how: memory_alignment_loss(x, cu_seqlens, 3, reduction=how),
            (hidden, reduction),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_dtypes_accumulate_in_float32(dtype):
    lengths = [300, 17, 1500]
    hidden = (torch.randn(sum(lengths), 33) + 3).to(dtype).requires_grad_()
    loss = memory_alignment_loss(hidden, cumulative(lengths), 16)
    assert loss.dtype == torch.float32
    wide = hidden.detach().double().requires_grad_()
    expected = by_document(wide, lengths, [16] * 3)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    expected.backward()
    assert hidden.grad.dtype == dtype
    unit = {torch.float16: 2**-10, torch.bfloat16: 2**-8, torch.float32: 1e-4}[dtype]
    floor = 6e-8 if dtype == torch.float16 else 2e-8
    torch.testing.assert_close(hidden.grad.double(), wide.grad, rtol=unit, atol=floor)


def test_one_number_of_memory_rows_equals_a_tensor_of_it():
    hidden, cu_seqlens = torch.randn(20, 6), torch.tensor([0, 9, 20], dtype=torch.int32)
    as_tensor = torch.tensor([4, 4], dtype=torch.int32)
    assert torch.equal(
        memory_alignment_loss(hidden, cu_seqlens, 4),
        memory_alignment_loss(hidden, cu_seqlens, as_tensor),
    )


def test_documents_weigh_the_same_whatever_their_length():
    long, short = torch.randn(50, 4), torch.randn(5, 4)
    both = memory_alignment_loss(torch.cat([long, short]), cumulative([50, 5]), 2)
    alone = [memory_alignment_loss(x, cumulative([len(x)]), 2) for x in (long, short)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_bad_arguments():
    hidden, cu_seqlens = torch.randn(10, 4), torch.tensor([0, 4, 10], dtype=torch.int32)
    with pytest.raises(TypeError, match=r"hidden must be floating point, got torch\.int64"):
        memory_alignment_loss(hidden.long(), cu_seqlens, 1)
    with pytest.raises(ValueError, match=r"hidden must have shape \[T, H\] with H of at least 1"):
        memory_alignment_loss(hidden[None], cu_seqlens, 1)
    with pytest.raises(TypeError, match=r"cu_seqlens must be int32, got torch\.int64"):
        memory_alignment_loss(hidden, cu_seqlens.long(), 1)
    with pytest.raises(ValueError, match="cu_seqlens must end at 9, the rows of hidden, got 10"):
        memory_alignment_loss(hidden[:9], cu_seqlens, 1)
    with pytest.raises(ValueError, match="cu_seqlens must hold at least one document"):
        memory_alignment_loss(hidden[:0], cu_seqlens[:1], 1)
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'none'"):
        memory_alignment_loss(hidden, cu_seqlens, 1, reduction="none")
    with pytest.raises(TypeError, match="n_memory must be an int, got float"):
        memory_alignment_loss(hidden, cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="n_memory must be at least 1, got 0"):
        memory_alignment_loss(hidden, cu_seqlens, 0)
    with pytest.raises(TypeError, match=r"n_memory must be an int or int32, got torch\.int64"):
        memory_alignment_loss(hidden, cu_seqlens, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"n_memory must have shape \[2\], got \[3\]"):
        memory_alignment_loss(hidden, cu_seqlens, torch.ones(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="n_memory must be at least 1, got 0 for document 1"):
        memory_alignment_loss(hidden, cu_seqlens, torch.tensor([1, 0], dtype=torch.int32))
    with pytest.raises(ValueError, match="document 0 has 4 rows, of which n_memory takes 4"):
        memory_alignment_loss(hidden, cu_seqlens, 4)
    with pytest.raises(ValueError, match="document 1 has 6 rows, of which n_memory takes 7"):
        memory_alignment_loss(hidden, cu_seqlens, torch.tensor([1, 7], dtype=torch.int32))
