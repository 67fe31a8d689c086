"""Searches for `peak.peak_memory`, whose process imports them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.baselines.search import torch_topk
from clara_kernels import Corpus, cosine_topk

from .data import gaussian


def prepare_ours(count: int, width: int, k: int, threads: int) -> Callable[[], object]:
    torch.set_num_threads(threads)
    rows, queries = gaussian(count, width)
    corpus = Corpus(rows)
    cosine_topk(queries[:2], corpus[:1000], 1)
    return lambda: cosine_topk(queries, corpus, k)


def prepare_torch(count: int, width: int, k: int, threads: int) -> Callable[[], object]:
    torch.set_num_threads(threads)
    rows, queries = gaussian(count, width)
    torch_topk(queries[:2], rows[:1000], 1)
    return lambda: torch_topk(queries, rows, k)
