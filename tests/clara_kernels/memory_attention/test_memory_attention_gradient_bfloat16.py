"""The backward pass in bfloat16 on processors that multiply it: values against float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import bfloat16_case, document_by_document, random_case, with_gradients
from comparison import offsets_of

from clara_kernels import memory_attention
from clara_kernels.build import build_info, native
from clara_kernels.memory_attention import compiled, cpu, reference

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


def exact(given, scale, window):
    grad, q, k, v = (x.double() for x in given[:4])
    rest = *given[4:], scale, window
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
    given = bfloat16_case(LENGTHS, COUNTS, heads, kv_heads, width, memory_only)
    scale = width**-0.5
    found = compiled.backward(*given, scale, window)
    check(found, exact(given, scale, window))
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
    given = bfloat16_case([50, 20], [1, 1], 2, 1, 16)
    for scale in (40.0, -40.0):
        check(compiled.backward(*given, scale, 0), exact(given, scale, 0), size=2e4)


@pytest.mark.parametrize("size", [1e4, 1e9, 1e14])
def test_huge_scores(size):
    """The softmax is 1 for one key, so that queries and keys get no gradient."""
    grad, q, *rest = bfloat16_case([20, 40], [1, 1], 2, 1, 16)
    given = grad, q * size, *rest
    found = compiled.backward(*given, 0.37, 0)
    _, _, dv = exact(given, 0.37, 0)
    check(found[2:], [dv])
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("window", [0, 3])
def test_other_instructions_compute_the_same(window, monkeypatch):
    given = bfloat16_case([40, 70], [4, 4], 4, 2, 32)
    grad, q, k, v, *documents = given
    rest = *documents, 0.2, window
    results = cpu.forward(q, k, v, *rest)
    made = cpu.backward(grad, q, k, v, *results, *rest)
    monkeypatch.setenv("CLARA_SIMD", "avx512")
    assert not native.attends_bfloat16()
    others = cpu.backward(grad, q, k, v, *results, *rest)
    expected = exact(given, 0.2, window)
    check(made, expected)
    check(others, expected, roundings=1)  # they read results, which were rounded
    assert not torch.equal(made[0], others[0])  # they were computed otherwise


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("lengths", "kv_heads"), [([300, 5, 280, 290], 3), ([400], 1)])
def test_threads_compute_the_same(lengths, kv_heads, window, set_threads):
    given = bfloat16_case(lengths, [4] * len(lengths), 6, kv_heads, 64)
    expected, made = exact(given, 0.1, window), []
    for threads in (1, 2, 7):
        set_threads(threads)
        found = compiled.backward(*given, 0.1, window)
        made.append(torch.cat([x.flatten() for x in found]))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    check(found, expected)


@pytest.mark.parametrize("memory_only", [False, True])
def test_all_is_written_and_what_lies_around_it_is_not_read(memory_only, monkeypatch):
    """Results and the rows of another document are NaN beforehand."""
    grad, q, k, v, *documents = bfloat16_case([9, 90, 7], [3, 3, 3], 6, 3, 48, memory_only)
    own = slice(3, 6) if memory_only else slice(9, 99)
    alone = offsets_of([90]), torch.tensor(3), memory_only
    whole = compiled.backward(grad[own], q[own], k[9:99], v[9:99], *alone, 0.2, 0)
    for x, kept in ((grad, own), (q, own), (k, slice(9, 99)), (v, slice(9, 99))):
        values = x[kept].clone()
        x.fill_(torch.nan)[kept] = values
    for name in ("empty_like", "zeros_like"):
        monkeypatch.setattr(torch, name, lambda x: torch.full_like(x, torch.nan))
    dq, dk, dv = compiled.backward(grad, q, k, v, *documents, 0.2, 0)
    for one, other in zip(whole, (dq[own], dk[9:99], dv[9:99]), strict=True):
        assert torch.equal(one, other)
    assert all(x.isfinite().all() for x in whole)


def test_a_gradient_that_is_not_finite_stays_with_its_query():
    grad, *rest = bfloat16_case([100], [1], 4, 2, 32)
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


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_inputs_that_are_not_finite_reach_who_reads_them(name, lost):
    grad, q, k, v, *rest = bfloat16_case([100], [1], 4, 2, 32)
    before, _, _ = compiled.backward(grad, q, k, v, *rest, 0.2, 0)
    {"q": q, "k": k, "v": v}[name][62] = lost
    after, dk, dv = compiled.backward(grad, q, k, v, *rest, 0.2, 0)
    # Of q its own row alone; of k and v all rows behind, and of k, where a row before shares a
    # tile with one behind, this row too: there is 0 times NaN.
    reached = slice(62, 63) if name == "q" else slice(62, 100)
    assert after[reached].isnan().all()
    assert torch.equal(before[:60], after[:60])
    if name != "k":
        assert torch.equal(before[60:62], after[60:62])
    if name == "q":
        assert torch.equal(before[63:], after[63:])
    if name == "v":  # weights do not depend on it
        assert dv.isfinite().all()
    else:
        assert dv[:61].isnan().all()
    assert dk[:61].isnan().all()


@pytest.mark.parametrize(
    ("lengths", "counts", "kept"),
    [
        ([5, 0, 4], [2, 2, 2], [0, 1, 4, 5]),  # no rows
        ([1, 3], [2, 2], [2, 3]),  # fewer than queries, which are as many as all rows
        ([5, 40, 9], [2, 0, 2], [0, 1, 2, 3]),  # no queries
    ],
)
def test_skipped_documents_get_none(lengths, counts, kept, monkeypatch):
    """They get here where nothing reads the bounds, under torch.compile."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))
    grad, q, k, v, *_ = bfloat16_case([max(n, 2) for n in lengths], [2] * len(lengths), 4, 2, 16)
    rows, queries = sum(lengths), sum(counts)
    bounds, numbers = offsets_of(lengths), torch.tensor(counts, dtype=torch.int32)
    given = grad[:queries], q[:queries], k[:rows], v[:rows]
    dq, dk, dv = compiled.backward(*given, bounds, numbers, True, 0.2, 0)
    computed = [n >= m > 0 for n, m in zip(lengths, counts, strict=True)]
    mask = torch.tensor(computed).repeat_interleave(torch.tensor(lengths))
    whole = [n for n, computes in zip(lengths, computed, strict=True) if computes]
    rest = offsets_of(whole), torch.tensor(2), True, 0.2, 0
    grad, q, k, v = (x[y] for x, y in zip(given, (kept, kept, mask, mask), strict=True))
    expected = compiled.backward(grad, q, k, v, *rest)
    for one, other in zip((dq[kept], dk[mask], dv[mask]), expected, strict=True):
        assert torch.equal(one, other)
    skipped = [i for i in range(queries) if i not in kept]
    assert not torch.cat([dq[skipped].flatten(), dk[~mask].flatten(), dv[~mask].flatten()]).any()


def test_gradients_of_another_layout_and_dtype():
    grad, *rest = bfloat16_case([20, 30], [1, 1], 4, 2, 16)
    expected = compiled.backward(grad, *rest, 0.2, 0)
    apart = grad.transpose(0, 1).contiguous().transpose(0, 1)
    for given in (apart, grad.float()):
        for one, other in zip(compiled.backward(given, *rest, 0.2, 0), expected, strict=True):
            assert torch.equal(one, other)
