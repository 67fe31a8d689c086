"""Threads, processes and the choice of an instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from search_oracle import (
    SIMD,
    corpus_of,
    dtypes,
)

from clara_kernels import build_info, cosine_topk


@pytest.mark.parametrize("simd", SIMD)
@dtypes
def test_threads_change_nothing(simd, dtype, monkeypatch, set_threads):
    monkeypatch.setenv("CLARA_SIMD", simd)
    for b, n, d in [(3, 4003, 300), (200, 30, 900)]:  # shared by rows, by queries
        queries, corpus = torch.randn(b, d), corpus_of(n, d, dtype)
        corpus[1::2] = corpus[::2][: len(corpus[1::2])]  # ties within and between threads' rows
        results = []
        for count in (1, 2, 4, 7):
            set_threads(count)
            results.append(cosine_topk(queries, corpus, 50))
        for scores, rows in results[1:]:
            assert torch.equal(scores, results[0][0])
            assert torch.equal(rows, results[0][1])


@pytest.mark.parametrize("count", [1, 3])
def test_parallel_calls_agree(count, set_threads):
    corpus = torch.randn(3000, 200)
    queries = [torch.randn(9, 200) for _ in range(6)]
    expected = [cosine_topk(each, corpus, 30) for each in queries]
    found = [None] * 6

    def search(i):
        for _ in range(5):
            found[i] = cosine_topk(queries[i], corpus, 30)

    set_threads(count)
    threads = [threading.Thread(target=search, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


FORK = """
import os, threading, torch
from clara_kernels import cosine_topk
torch.set_num_threads(4)
queries, corpus = torch.randn(8, 256), torch.randn(20000, 256)
expected = cosine_topk(queries, corpus, 9)
running = threading.Thread(target=lambda: [cosine_topk(queries, corpus, 9) for _ in range(20)])
running.start()
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        found = cosine_topk(queries, corpus, 9)
        os._exit(0 if torch.equal(found[1], expected[1]) else 1)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
running.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_search():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=300)


@pytest.mark.skipif(not build_info()["compiled"], reason="needs the compiled module")
def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", "avx1024")
    with pytest.raises(ValueError, match=r"CLARA_SIMD must be one of .*, got 'avx1024'"):
        cosine_topk(torch.ones(1, 2), torch.ones(1, 2), 1)
