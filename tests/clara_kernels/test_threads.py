"""The compiled module's threads keep out of the way of PyTorch's."""

from __future__ import annotations

import pytest
import torch

from clara_kernels.adapted_linear import multiplies_here
from clara_kernels.build import build_info
from clara_kernels.threads import processors_are_free


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of threads; idle ones spin, as they do without settings."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_one_thread_has_its_processor(threads):
    threads(1)
    assert processors_are_free()
    threads(2)
    assert not processors_are_free()


@pytest.mark.parametrize(
    ("name", "value", "free"),
    [
        ("GOMP_SPINCOUNT", "0", True),
        ("GOMP_SPINCOUNT", "1000", False),
        ("OMP_WAIT_POLICY", "PASSIVE", True),
        ("OMP_WAIT_POLICY", "active", False),
    ],
)
def test_threads_that_sleep_leave_processors_free(threads, monkeypatch, name, value, free):
    threads(2)
    monkeypatch.setenv(name, value)
    assert processors_are_free() is free


@pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16", reason="this processor or build has no such kernel"
)
def test_products_of_several_threads_are_pytorchs_where_those_spin(threads, monkeypatch):
    weight = torch.ones(2, 4, dtype=torch.bfloat16)
    threads(2)
    assert not multiplies_here(weight)
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    assert multiplies_here(weight)
