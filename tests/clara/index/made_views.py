"""Indexes that have views, and what is found in them."""

from pathlib import Path

import torch

from clara.index import MemoryIndex

COUNT, SHAPE = 5_000, (2, 8)  # so many that codes are looked at first
FEW = 300


def queries(count=5, shape=SHAPE, seed=9):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def memory(count=COUNT, shape=SHAPE, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def found(index, *given, **more):
    return [[(hit.id, hit.score) for hit in hits] for hits in index.search(*given, **more)]


def views_of(index):
    return sorted(Path(index.path, "_views").glob("*"))


def in_ram(index):
    return MemoryIndex.open(index.path, views=False)
