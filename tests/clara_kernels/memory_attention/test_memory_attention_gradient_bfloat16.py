"""The backward pass in bfloat16 on processors that multiply it: values against float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import document_by_document, random_case, with_gradients
from comparison import offsets_of

from clara_kernels import memory_attention
from clara_kernels.build import build_info, native
from clara_kernels.memory_attention import compiled, cpu, reference
from clara_kernels.memory_attention.reference import query_offsets

pytestmark = pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16",
    reason="this processor or build has no such kernel",
)
ROUNDING = 2**-8
LENGTHS = [1, 2, 33, 64, 100, 130]
COUNTS = [1, 2, 5, 5, 5, 5]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def case(lengths, counts, heads, kv_heads, width, memory_only=False):
    """Gradient, q, k and v, and where rows and queries begin."""
    sizes = heads, kv_heads, width
    *inputs, grad = random_case(lengths, counts, *sizes, torch.bfloat16, memory_only)
    bounds, numbers = offsets_of(lengths), torch.tensor(counts, dtype=torch.int32)
    return grad, *inputs, bounds, query_offsets(bounds, numbers, memory_only)


def exact(lengths, counts, given, scale, window, memory_only=False):
    grad, q, k, v = (x.double() for x in given[:4])
    rest = offsets_of(lengths), torch.tensor(counts, dtype=torch.int32), memory_only, scale, window
    return reference.backward(grad, q, k, v, *reference.forward(q, k, v, *rest), *rest)


def check(found, expected, size=1.0, roundings=0.7):
    """Within what rounding weights, gradients of scores and results once each explains."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        largest = max(other.abs().max(), size * ROUNDING)
        assert (one.double() - other).abs().max() <= 2 * ROUNDING * largest
        norm = max(other.norm(), size * ROUNDING)
        assert (one.double() - other).norm() <= roundings * ROUNDING * norm


@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("window", [0, 1, 7, 40])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 16), (6, 2, 48), (8, 1, 128)]
)
def test_values(heads, kv_heads, width, window, memory_only):
    given = case(LENGTHS, COUNTS, heads, kv_heads, width, memory_only)
    scale = width**-0.5
    found = compiled.backward(*given, scale, window)
    check(found, exact(LENGTHS, COUNTS, given, scale, window, memory_only))
    if window == 1:  # a softmax of one score does not change with it
        assert not found[0].any()
        assert not found[1].any()


@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("window", [None, 7])
def test_no_less_exact_than_pytorch_in_bfloat16(window, memory_only):
    lengths, counts = LENGTHS[1:], [1, 5, 5, 5, 5]
    *inputs, grad = random_case(lengths, counts, 9, 3, 64, torch.bfloat16, memory_only)
    bounds, numbers = offsets_of(lengths), torch.tensor(counts, dtype=torch.int32)

    def ours(*x):
        return memory_attention(*x, bounds, numbers, memory_only=memory_only, window=window)

    def theirs(*x):
        return document_by_document(*x, lengths, counts, memory_only, None, window)

    wide = with_gradients(theirs, [x.double() for x in inputs], grad.double())
    plain, found = with_gradients(theirs, inputs, grad), with_gradients(ours, inputs, grad)
    for one, other, expected in zip(found[1:], plain[1:], wide[1:], strict=True):
        assert (one.double() - expected).norm() <= (other.double() - expected).norm()


def test_scores_at_which_an_exponential_would_overflow():
    lengths, counts = [50, 20], [1, 1]
    given = case(lengths, counts, 2, 1, 16)
    for scale in (40.0, -40.0):
        check(
            compiled.backward(*given, scale, 0), exact(lengths, counts, given, scale, 0), size=2e4
        )


@pytest.mark.parametrize("size", [1e4, 1e9, 1e14])
def test_huge_scores(size):
    """The softmax is 1 for one key, so that queries and keys get no gradient."""
    lengths, counts = [20, 40], [1, 1]
    grad, q, *rest = case(lengths, counts, 2, 1, 16)
    given = grad, q * size, *rest
    found = compiled.backward(*given, 0.37, 0)
    _, _, dv = exact(lengths, counts, given, 0.37, 0)
    check(found[2:], [dv])
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("window", [0, 3])
def test_other_instructions_compute_the_same(window, monkeypatch):
    lengths, counts = [40, 70], [4, 4]
    given = case(lengths, counts, 4, 2, 32)
    grad, q, k, v, bounds, _ = given
    rest = bounds, torch.tensor(4), False, 0.2, window
    results = cpu.forward(q, k, v, *rest)
    made = cpu.backward(grad, q, k, v, *results, *rest)
    monkeypatch.setenv("CLARA_SIMD", "avx512")
    assert not native.attends_bfloat16()
    others = cpu.backward(grad, q, k, v, *results, *rest)
    expected = exact(lengths, counts, given, 0.2, window)
    check(made, expected)
    check(others, expected, roundings=1)  # they read results, which were rounded
    assert not torch.equal(made[0], others[0])  # they were computed otherwise


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("lengths", "kv_heads"), [([300, 5, 280, 290], 3), ([400], 1)])
def test_threads_compute_the_same(lengths, kv_heads, window):
    counts = [4] * len(lengths)
    given = case(lengths, counts, 6, kv_heads, 64)
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found = compiled.backward(*given, 0.1, window)
            made.append(torch.cat([x.flatten() for x in found]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    check(found, exact(lengths, counts, given, 0.1, window))


@pytest.mark.parametrize("memory_only", [False, True])
def test_all_is_written_and_what_lies_around_it_is_not_read(memory_only, monkeypatch):
    """Results and the rows of another document are NaN beforehand."""
    lengths, counts = [9, 90, 7], [3, 3, 3]
    grad, q, k, v, bounds, q_bounds = case(lengths, counts, 6, 3, 48, memory_only)
    own = slice(int(q_bounds[1]), int(q_bounds[2]))
    whole = compiled.backward(
        grad[own], q[own], k[9:99], v[9:99], offsets_of([90]), q_bounds[1:3] - own.start, 0.2, 0
    )
    for x, kept in ((grad, own), (q, own), (k, slice(9, 99)), (v, slice(9, 99))):
        values = x[kept].clone()
        x.fill_(torch.nan)[kept] = values
    for name in ("empty_like", "zeros_like"):
        monkeypatch.setattr(torch, name, lambda x: torch.full_like(x, torch.nan))
    dq, dk, dv = compiled.backward(grad, q, k, v, bounds, q_bounds, 0.2, 0)
    for one, other in zip(whole, (dq[own], dk[9:99], dv[9:99]), strict=True):
        assert torch.equal(one, other)
    assert all(x.isfinite().all() for x in whole)


def test_values_that_are_not_finite_stay_with_their_query():
    grad, *rest = case([100], [1], 4, 2, 32)
    before, _, _ = compiled.backward(grad, *rest, 0.2, 0)
    grad[60, 3, 5] = torch.nan
    after, dk, dv = compiled.backward(grad, *rest, 0.2, 0)
    assert after[60, 3].isnan().all()
    others = torch.ones(100, 4, dtype=torch.bool)
    others[60, 3] = False
    assert torch.equal(before[others], after[others])
    # Every key that the query sees gets a part of what is not known; another head's keys do not.
    assert dk[:61, 1].isnan().all()
    assert dv[:61, 1, 5].isnan().all()
    assert dk[:, 0].isfinite().all()
    assert dv[:, 0].isfinite().all()


def test_keys_of_documents_without_queries_get_none():
    """Of such as get here where nothing reads the bounds, under torch.compile."""
    grad, q, k, v, bounds, _ = case([5, 40, 9], [2, 2, 2], 4, 2, 16, True)
    q_bounds = torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    kept = [0, 1, 4, 5]
    dq, dk, dv = compiled.backward(grad[kept], q[kept], k, v, bounds, q_bounds, 0.2, 0)
    assert not dk[5:45].any()
    assert not dv[5:45].any()
    rows = [*range(5), *range(45, 54)]
    whole = offsets_of([5, 9]), torch.tensor([0, 2, 4], dtype=torch.int32)
    expected = compiled.backward(grad[kept], q[kept], k[rows], v[rows], *whole, 0.2, 0)
    for one, other in zip((dq, dk[rows], dv[rows]), expected, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_another_layout_and_dtype():
    grad, *rest = case([20, 30], [1, 1], 4, 2, 16)
    expected = compiled.backward(grad, *rest, 0.2, 0)
    apart = grad.transpose(0, 1).contiguous().transpose(0, 1)
    for given in (apart, grad.float()):
        for one, other in zip(compiled.backward(given, *rest, 0.2, 0), expected, strict=True):
            assert torch.equal(one, other)
