"""Exact searches that compute-sanitizer watches on a GPU."""

import torch

from bench.scoring.data import gaussian
from bench.small import searches
from bench.small.__main__ import main
from clara_kernels import cosine_topk

CPU = torch.device("cpu")


def test_small_searches(capsys):
    assert main(["searches", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip().endswith("searches passed")


def test_small_searches_notice_what_is_wrong():
    rows, queries = gaussian(50, 20)

    def wrong(device):
        scores, indices = cosine_topk(queries, rows, 4)
        calls.append(device)
        return (scores, indices) if len(calls) == 1 else (scores + 1e-3, indices)

    calls = []
    assert "scores differ from its cosines" in searches.problem(queries, rows, wrong, CPU)

    def misses(device):
        scores, indices = cosine_topk(queries, rows, 4)
        calls.append(device)
        return (scores, indices) if len(calls) == 1 else cosine_topk(queries, rows[:40], 4)

    calls = []
    assert "those of the CPU" in searches.problem(queries, rows, misses, CPU)
