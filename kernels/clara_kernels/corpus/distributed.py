"""Search of a corpus that several processes hold."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import as_int
from ..cosine_topk.checks import checked_k
from ..cosine_topk.merge import merge_topk, widened
from ..cosine_topk.rows import require_corpus
from .corpus import Corpus
from .search import search_rows

_UNKNOWN = -1


def distributed_topk(
    queries: Tensor, shard: Corpus, k: int, *, group: Any = None, first_row: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k rows with the highest cosine to each query, over the shards of all processes.

    Every process of the group calls this function with the same queries and k, and gets the same
    result. Each process searches its own shard. One exchange gathers the results, B·k scores and
    rows per process, and every process merges them. If one process raises, the others wait until
    the group's timeout.

    Args:
        queries: `[B, D]`, float32, float16 or bfloat16, on the shard's device, or on a GPU where
            the shard is on the CPU (see `streamed_topk`).
        shard: the rows of this process; may be empty.
        k: 1 to 2,048.
        group: of `torch.distributed`; None is the default one.
        first_row: number of this shard's first row in the whole corpus. If it is None in all
            processes, rows are numbered over the shards in order of rank.

    Returns:
        Scores `[B, min(k, N)]`, float32, descending, and row numbers in the whole corpus of N rows,
        int64, of that shape, on the queries' device.

    Raises:
        TypeError: an argument is not of the stated type.
        ValueError: shapes or devices do not match, k is out of range, or first rows are given in
            some processes only or make shards overlap.
        RuntimeError: there is no process group.

    Examples:
        >>> import torch
        >>> from torch import distributed
        >>> from clara_kernels import Corpus, distributed_topk
        >>> store = distributed.HashStore()  # of a single process; torchrun sets up several
        >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> scores, rows = distributed_topk(torch.eye(3)[:1], Corpus(torch.eye(3)), 1)
        >>> rows
        tensor([[0]])
        >>> distributed.destroy_process_group()
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("distributed_topk needs torch.distributed.init_process_group first")
    require_corpus("shard", shard)
    k = checked_k(k)
    if first_row is not None:
        first_row = as_int("first_row", first_row, 0)
    scores, rows = widened(*search_rows(queries, shard, k), k)
    sizes = [len(shard), _UNKNOWN if first_row is None else first_row]
    bits = scores.view(torch.int32).to(torch.int64)
    payload = torch.cat([bits.new_tensor(sizes), bits.flatten(), rows.flatten()])
    if dist.get_backend(group) == "gloo":
        payload = payload.cpu()
    gathered = [torch.empty_like(payload) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, payload, group=group)
    headers = torch.stack([each[:2] for each in gathered]).tolist()
    firsts = _first_rows([(count, first) for count, first in headers])
    every = torch.stack(gathered)[:, 2:].to(queries.device).view(len(gathered), 2, len(queries), k)
    bits, rows = every[:, 0].to(torch.int32), every[:, 1]
    offsets = torch.tensor(firsts, device=rows.device).view(-1, 1, 1)
    rows = torch.where(rows < 0, -1, rows + offsets)
    merged = merge_topk([each.view(torch.float32) for each in bits], list(rows), k)
    width = min(k, sum(count for count, _ in headers))
    return merged[0][:, :width], merged[1][:, :width]


def _first_rows(shards: list[tuple[int, int]]) -> list[int]:
    """The first row of each process' shard, from its size and its own first row, if it has one."""
    given = [first for _, first in shards if first != _UNKNOWN]
    if not given:
        return list(accumulate((count for count, _ in shards), initial=0))[:-1]
    if len(given) != len(shards):
        raise ValueError("first_row must be given in every process or in none")
    spans = sorted((first, first + count) for count, first in shards if count)
    for (first, end), (after, _) in pairwise(spans):
        if after < end:
            taken = f"rows {first} to {end - 1} belong to another shard"
            raise ValueError(f"first_row must keep shards apart, got {after}: {taken}")
    return given
