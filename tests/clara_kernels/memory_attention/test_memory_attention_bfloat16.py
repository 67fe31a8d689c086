"""The forward pass in bfloat16 on processors that multiply it: values against float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import bfloat16_case
from comparison import offsets_of

from clara_kernels.build import build_info, native
from clara_kernels.memory_attention import cpu, reference

pytestmark = pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16",
    reason="this processor or build has no such kernel",
)
ROUNDING = 2**-8
"""Of the values' size: weights and results are rounded by half a step each."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def check(given, scale, window):
    out, lse = cpu.forward(*given, scale, window)
    exact, sums = reference.forward(*(x.double() for x in given[:3]), *given[3:], scale, window)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() <= 2 * ROUNDING * exact.abs().max()
    assert (out.double() - exact).norm() <= 0.6 * ROUNDING * exact.norm()
    torch.testing.assert_close(lse, sums.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_only", [False, True])
@pytest.mark.parametrize("window", [0, 1, 7, 40])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 16), (6, 2, 48), (8, 1, 128)]
)
def test_values(heads, kv_heads, width, window, memory_only):
    lengths = [1, 2, 33, 64, 100, 130]
    counts = [min(length, 5) for length in lengths]
    _, *given = bfloat16_case(lengths, counts, heads, kv_heads, width, memory_only)
    check(given, width**-0.5, window)


def test_large_scores():
    """Where a softmax without its largest score taken off would overflow."""
    _, *given = bfloat16_case([50, 20], [1, 1], 2, 1, 16)
    check(given, 40.0, 0)
    check(given, -40.0, 0)


@pytest.mark.parametrize("size", [1e4, 1e9, 1e14])
def test_huge_scores(size):
    """Where the rounding of a score is more than what an exponential can hold."""
    _, q, *rest = bfloat16_case([20, 40], [1, 1], 2, 1, 16)
    q *= size
    out, _ = cpu.forward(q, *rest, 0.37, 0)
    exact, _ = reference.forward(*(x.double() for x in (q, *rest[:2])), *rest[2:], 0.37, 0)
    assert (out.double() - exact).abs().max() <= 2 * ROUNDING * exact.abs().max()


@pytest.mark.parametrize("window", [0, 3])
def test_other_instructions_compute_the_same(window, monkeypatch):
    _, *given = bfloat16_case([40, 70], [4, 4], 4, 2, 32)
    made, sums = cpu.forward(*given, 0.2, window)
    monkeypatch.setenv("CLARA_SIMD", "avx512")
    assert not native.attends_bfloat16()
    other, other_sums = cpu.forward(*given, 0.2, window)
    torch.testing.assert_close(made, other, rtol=2 * ROUNDING, atol=2 * ROUNDING)
    torch.testing.assert_close(sums, other_sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(
    ("lengths", "kv_heads"),
    [([300, 5, 280, 290], 3), ([700], 1)],  # the second is cut, as there is but one piece
)
def test_threads_compute_the_same(lengths, kv_heads, window, set_threads):
    _, *given = bfloat16_case(lengths, [4] * len(lengths), 6, kv_heads, 64)
    made = []
    for threads in (1, 2, 7):
        set_threads(threads)
        made.append(torch.cat([x.flatten() for x in cpu.forward(*given, 0.1, window)]))
        check(given, 0.1, window)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_documents_do_not_see_each_other_nor_later_tiles():
    _, q, k, v, *rest = bfloat16_case([9, 90, 6], [2] * 3, 2, 2, 32)
    before, _ = cpu.forward(q, k, v, *rest, 0.2, 0)
    k[9 + 64 : 99], v[9 + 64 : 99] = torch.nan, torch.inf
    after, _ = cpu.forward(q, k, v, *rest, 0.2, 0)
    assert torch.equal(before[: 9 + 60], after[: 9 + 60])
    assert torch.equal(before[99:], after[99:])
    assert after[98].isnan().all()


def test_nothing_to_compute():
    _, q, k, v, bounds, _, _ = bfloat16_case([5, 9], [0, 0], 4, 2, 16)
    none = torch.zeros(2, dtype=torch.int32)
    out, lse = cpu.forward(q[:0], k, v, bounds, none, True, 0.2, 0)
    assert out.shape == (0, 4, 16)
    assert lse.shape == (0, 4)


def test_documents_with_fewer_rows_than_queries_are_skipped():
    """They get here where nothing reads the bounds, such as under torch.compile."""
    _, q, k, v, bounds, counts, _ = bfloat16_case([5, 0, 9], [2, 2, 2], 4, 2, 16, True)
    out, lse = cpu.forward(q, k, v, bounds, counts, True, 0.2, 0)
    kept = [0, 1, 4, 5]
    whole = offsets_of([5, 9]), torch.tensor([2, 2], dtype=torch.int32)
    expected, sums = cpu.forward(q[kept], k, v, *whole, True, 0.2, 0)
    assert torch.equal(out[kept], expected)
    assert torch.equal(lse[kept], sums)
