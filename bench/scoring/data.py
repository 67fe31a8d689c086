"""Rows and queries to search with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

DOCUMENT_WORDS = 96
QUERY_WORDS = 12
QUERIES = 256
SAME = 1e-6


def gaussian(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and queries of norm 1 in random directions: nothing is near to anything, so that the
    best of many rows lie as close together as they can."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    queries = torch.randn(QUERIES, width, generator=generator)
    return normalize(rows, dim=1, out=rows), normalize(queries, dim=1, out=queries)


def groups(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and queries of norm 1 about a random direction for every ten rows: a direction and half
    of it in Gaussian noise, so that two of a group have a cosine of about 0.8."""
    generator = torch.Generator().manual_seed(seed)
    topics = max(1, count // 10)
    directions = normalize(torch.randn(topics, width, generator=generator), dim=1)

    def about(number: int) -> Tensor:
        chosen = torch.randint(topics, (number,), generator=generator)
        vectors = torch.randn(number, width, generator=generator).mul_(0.5 / width**0.5)
        return normalize(vectors.add_(directions[chosen]), dim=1)

    return about(count), about(QUERIES)


def word_documents(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and queries of norm 1: a row is the mean of the random vectors of 96 words, drawn from a
    vocabulary by Zipf's law; a query that of 12 words of one document."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(20_000, 40_000_000 // width)
    shares = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    edges = shares.cumsum(0) / shares.sum()
    drawn = torch.rand(count, DOCUMENT_WORDS, generator=generator, dtype=torch.float64)
    words = torch.searchsorted(edges, drawn).clamp_(max=vocabulary - 1)
    vectors = torch.randn(vocabulary, width, generator=generator)
    rows = torch.empty(count, width)
    for part, out in zip(words.split(4096), rows.split(4096), strict=True):
        out.copy_(embedding_bag(part, vectors, mode="mean"))
    chosen = torch.randint(count, (QUERIES,), generator=generator)
    queries = embedding_bag(words[chosen, :QUERY_WORDS], vectors, mode="mean")
    return normalize(rows, dim=1, out=rows), normalize(queries, dim=1, out=queries)


def stored(count: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random memory, or codes as `quantize_memory` makes them, part by part."""
    rows = torch.empty(count, width, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for part in rows.split(max(1, 2**24 // width)):
        if dtype == torch.int8:
            part.random_(-127, 128, generator=generator)
        else:
            part.copy_(torch.randn(part.shape, generator=generator, device=device))
    return rows


def recall(found: Tensor, exact: Tensor) -> float:
    """The share of the exact rows `[B, k]` that were found, wherever they stand."""
    return (found[:, :, None] == exact[:, None, :]).any(1).double().mean().item()


def furthest_apart(found: Tensor, expected: Tensor, queries: Tensor, rows: Tensor) -> float:
    """Where two answers `[B, k]` name different rows, the largest difference of their cosines in
    float64; 0 where they are the same."""
    query, place = (found != expected).nonzero(as_tuple=True)
    if not len(query):
        return 0.0

    def cosines(answer: Tensor) -> Tensor:
        q, row = queries[query].double(), rows[answer[query, place]].double()
        return (normalize(q, dim=1) * normalize(row, dim=1)).sum(1)

    return (cosines(found) - cosines(expected)).abs().max().item()


def exact_topk(queries: Tensor, rows: Tensor, k: int) -> Tensor:
    """Rows `[B, k]` of the highest cosines, computed in float32 part by part."""
    scores, places, start = [], [], 0
    for part in rows.split(max(1, 2**25 // rows.shape[1])):
        found = (queries @ normalize(part.float(), dim=1).T).topk(min(k, len(part)))
        scores.append(found.values)
        places.append(found.indices + start)
        start += len(part)
    best = torch.cat(scores, 1).topk(k).indices
    return torch.cat(places, 1).gather(1, best)


def tolerance(queries: Tensor, dtype: torch.dtype) -> float:
    """How far cosines may be apart that are ordered either way: float32 rounds sums; for int8 rows
    queries are rounded to 16 bits, in steps of their largest value / 32,639."""
    if dtype != torch.int8:
        return SAME
    largest, norm = queries.abs().amax(1), queries.norm(dim=1)
    return (SAME + queries.shape[1] ** 0.5 * largest / (65278 * norm)).max().item()
