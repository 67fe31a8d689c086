"""The compiled module works in PyTorch's threads, and without them in a process that was forked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from clara_kernels import threads as module
from clara_kernels.adapted_linear import multiplies_here
from clara_kernels.build import build_info, native
from clara_kernels.threads import processors_are_free

OPENMP = sys.platform == "linux" and "backend: OpenMP" in torch.__config__.parallel_info()
needs_openmp = pytest.mark.skipif(
    native is None or not OPENMP, reason="needs the compiled module and PyTorch with OpenMP"
)
BEGIN = """
import os, signal, torch
signal.alarm(120)
torch.set_num_threads(2)
"""


def run(program, **environment):
    """Runs a program in a Python that was started for it; those that are forked share nothing."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@needs_openmp
def test_work_is_done_in_threads_of_pytorch():
    run(
        """
from clara_kernels import cosine_topk
from clara_kernels.build import native

def nanoseconds(thread):
    with open(f"/proc/self/task/{thread}/schedstat") as file:
        return int(file.read().split()[0])

before = set(os.listdir("/proc/self/task"))
torch.ones(10_000_000).exp_()
(worker,) = set(os.listdir("/proc/self/task")) - before
queries, corpus = torch.randn(16, 512), torch.randn(20_000, 512)
begin = nanoseconds(worker)
for _ in range(10):
    cosine_topk(queries, corpus, 5)
assert native.shares_threads()
assert set(os.listdir("/proc/self/task")) == before | {worker}
assert nanoseconds(worker) > begin
""",
        GOMP_SPINCOUNT="0",  # an idle thread takes no time
    )


@needs_openmp
def test_a_library_that_is_not_there_changes_nothing():
    native.share_threads_of("libno_such_library.so")
    assert native.shares_threads()


@needs_openmp
def test_a_fork_has_threads_of_its_own():
    run("""
from clara_kernels import cosine_topk
from clara_kernels.build import native
queries, corpus = torch.randn(8, 256), torch.randn(20_000, 256)
expected = cosine_topk(queries, corpus, 9)
assert native.shares_threads()
child = os.fork()
if child == 0:
    signal.alarm(60)
    found = cosine_topk(queries, corpus, 9)
    os._exit(native.shares_threads() or not torch.equal(found[1], expected[1]))
assert os.waitpid(child, 0)[1] == 0
assert native.shares_threads()
""")


@needs_openmp
def test_a_fork_of_what_had_pytorch_alone_has_threads_of_its_own():
    run("""
queries, corpus = torch.eye(256)[:8], torch.eye(256).repeat(80, 1)
torch.ones(10_000_000).exp_()  # PyTorch starts threads, which the fork will not have
child = os.fork()
if child == 0:
    signal.alarm(60)
    from clara_kernels import cosine_topk
    from clara_kernels.build import native
    rows = cosine_topk(queries, corpus, 1)[1]
    os._exit(native.shares_threads() or rows.flatten().tolist() != list(range(8)))
assert os.waitpid(child, 0)[1] == 0
""")


class Unshared:
    """Stands for the compiled module of a process that was forked."""

    @staticmethod
    def shares_threads():
        return False


@pytest.fixture
def unshared(monkeypatch, set_threads):
    """Sets the number of threads; those of the module are others, and idle ones spin."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "native", Unshared)
    return set_threads


def test_one_thread_has_its_processor(unshared):
    unshared(1)
    assert processors_are_free()
    unshared(2)
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
def test_threads_that_sleep_leave_processors_free(unshared, monkeypatch, name, value, free):
    unshared(2)
    monkeypatch.setenv(name, value)
    assert processors_are_free() is free


@needs_openmp
def test_threads_that_are_shared_need_no_setting(unshared, monkeypatch):
    unshared(2)
    monkeypatch.setattr(module, "native", native)
    assert processors_are_free()


@pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16", reason="this processor or build has no such kernel"
)
def test_products_are_pytorchs_where_its_threads_spin_beside(unshared, monkeypatch):
    weight = torch.ones(2, 4, dtype=torch.bfloat16)
    unshared(2)
    assert not multiplies_here(weight)
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    assert multiplies_here(weight)
