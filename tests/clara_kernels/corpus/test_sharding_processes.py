"""`distributed_topk` in processes of their own: every one finds what one corpus would."""

import os
import subprocess
import sys

import pytest
import torch

from clara_kernels import Corpus, cosine_topk, distributed_topk
from clara_kernels.corpus.distributed import _first_rows

# Leaves without taking the group down, which now and then aborts a process.
EPILOGUE = """
dist.barrier()
torch.save(result, f"{folder}/found{rank}.pt")
sys.stderr.flush()
os._exit(0)
"""
LIMIT = 300  # seconds until processes that wait for each other fail the test

PROLOGUE = """
import datetime, os, sys
import torch, torch.distributed as dist
from clara_kernels import Corpus, distributed_topk
torch.set_num_threads(1)
folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size,
    timeout=datetime.timedelta(seconds=240),
)
given = torch.load(f"{folder}/given.pt")
bounds = given["bounds"]
shard = Corpus(given["rows"][bounds[rank] : bounds[rank + 1]].contiguous())
queries, k = given["queries"], given["k"]
"""
SEARCH = """
found = distributed_topk(queries, shard, k)
starts = [500 - 100 * rank for rank in range(size)]
apart = distributed_topk(queries, shard, k, first_row=starts[rank])
alone = distributed_topk(queries, shard, k, group=[dist.new_group([r]) for r in range(size)][rank])
none = distributed_topk(queries[:0], shard, k)
result = [found, apart, alone, none]
"""
REFUSED = """
messages = []
for first in (None if rank else 0, 5 * rank):
    try:
        distributed_topk(queries, shard, k, first_row=first)
    except ValueError as error:
        messages.append(str(error))
result = messages
"""


def run(warm, folder, code, sizes, rows, queries, k):
    """What each process has saved."""
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    given = {"rows": rows, "queries": queries, "k": k, "bounds": bounds}
    torch.save(given, folder / "given.pt")
    script = PROLOGUE + code + EPILOGUE
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else None
    running = [
        subprocess.Popen(
            [warm().python, "-c", script, str(folder), str(rank), str(len(sizes))],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(len(sizes))
    ]
    try:
        for process in running:
            errors = process.communicate(timeout=LIMIT)[1]
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [torch.load(folder / f"found{rank}.pt") for rank in range(len(sizes))]


def equal(found, expected):
    return all(one.equal(other) for one, other in zip(found, expected))


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "k"), [([90, 31], 12), ([0, 40], 60), ([25, 0, 7], 5)])
def test_processes_find_what_one_corpus_has(warm, tmp_path, sizes, k):
    count = sum(sizes)
    rows = torch.randint(-2, 3, (count, 5)).float()  # so that scores tie between processes
    queries = torch.randn(3, 5)
    found = run(warm, tmp_path, SEARCH, sizes, rows, queries, k)
    expected = cosine_topk(queries, Corpus(rows), k)
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    # Row numbers by each process' own first row: later shards come first where scores tie.
    own = torch.cat([500 - 100 * rank + torch.arange(size) for rank, size in enumerate(sizes)])
    order = own.argsort()
    apart_scores, apart_rows = cosine_topk(queries, rows[order], k)
    for rank, (together, apart, alone, none) in enumerate(found):
        assert equal(together, expected)
        assert equal(apart, (apart_scores, own[order][apart_rows]))
        part = rows[bounds[rank] : bounds[rank + 1]]
        assert equal(alone, cosine_topk(queries, part, k))
        assert none[0].shape == none[1].shape == (0, min(k, count))


@pytest.mark.slow
def test_first_rows_that_do_not_go_together(warm, tmp_path):
    found = run(warm, tmp_path, REFUSED, [6, 6], torch.randn(12, 3), torch.randn(2, 3), 2)
    assert (
        found
        == [
            [
                "first_row must be given in every process or in none",
                "first_row must keep shards apart, got 5: rows 0 to 5 belong to another shard",
            ]
        ]
        * 2
    )


@pytest.mark.slow
def test_first_rows():
    assert _first_rows([(4, -1), (0, -1), (2, -1)]) == [0, 4, 4]
    assert _first_rows([(4, 10), (0, 12), (2, 3)]) == [10, 12, 3]


@pytest.mark.slow
def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"needs torch.distributed.init_process_group first$"):
        distributed_topk(torch.ones(1, 2), Corpus(torch.ones(3, 2)), 1)
