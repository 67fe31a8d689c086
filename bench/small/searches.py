"""Exact searches of small odd sizes.

Cosines of the rows found are compared with those found on the CPU, and scores with cosines in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clara_kernels import cosine_rerank, cosine_topk

Found = tuple[Tensor, Tensor]
Search = Callable[[torch.device], Found]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_NEAR = 4e-5  # (D/512 + 528) · 2^-24 for the widest rows here
_NEAR_INT8 = 3e-4  # whose queries are rounded to 16 bits


def searches() -> Iterator[tuple[str, Tensor, Tensor, Search]]:
    """Names, queries, rows, and what searches on a device."""
    for dtype in (*_FLOATS, torch.int8):
        for batch, count, width, k in [
            *((1, 5, 1, 3), (3, 333, 100, 10), (8, 70, 1031, 80)),
            *((9, 257, 64, 10), (70, 300, 577, 300), (130, 40, 96, 1)),
        ]:
            generator = torch.Generator().manual_seed(batch)
            queries = torch.randn(batch, width, generator=generator)
            rows = torch.randn(count, width, generator=generator)
            rows = rows.mul(20).clamp(-127, 127).round() if dtype == torch.int8 else rows
            rows = rows.to(dtype)
            mask = torch.rand(count, generator=generator) < 0.5
            lists = torch.arange(batch + 1, dtype=torch.int32) * count
            listed = torch.randint(count, (batch * count,), generator=generator)
            name = f"{str(dtype).removeprefix('torch.')}, B={batch}, N={count}, D={width}, k={k}"

            def topk(device, queries=queries, rows=rows, mask=None, k=k) -> Found:
                there = None if mask is None else mask.to(device)
                return cosine_topk(queries.to(device), rows.to(device), k, mask=there)

            def rerank(
                device, queries=queries, rows=rows, lists=lists, listed=listed, k=k
            ) -> Found:
                there = [each.to(device) for each in (queries, rows, lists, listed)]
                return cosine_rerank(there[0], there[1], k, offsets=there[2], rows=there[3])

            yield name, queries, rows, topk
            yield f"{name}, mask", queries, rows, lambda device, s=topk, m=mask: s(device, mask=m)
            yield f"{name}, rerank", queries, rows, rerank


def checks() -> Iterator[tuple[str, Callable[[torch.device], str | None]]]:
    """Names of searches, and what tells what is wrong with them on a device."""
    for name, queries, rows, search in searches():
        yield name, partial(problem, queries, rows, search)


def problem(queries: Tensor, rows: Tensor, search: Search, device: torch.device) -> str | None:
    expected = search(torch.device("cpu"))[0]
    scores, found = (each.cpu() for each in search(device))
    there = found >= 0
    if not torch.equal(there, expected > -torch.inf):
        return "finds another number of rows"
    cosines = (
        normalize(queries.double(), dim=1)[:, None]
        * normalize(rows.double(), dim=1)[found.clamp(min=0)]
    ).sum(-1)
    near = _NEAR_INT8 if rows.dtype == torch.int8 else _NEAR
    for what, other in (("its cosines", cosines), ("those of the CPU", expected.double())):
        apart = (scores.double() - other)[there].abs().max().item() if there.any() else 0.0
        if not apart <= near:
            return f"scores differ from {what} by {apart:.1e}"
    return None
