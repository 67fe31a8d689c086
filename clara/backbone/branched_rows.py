"""Repeat, for each branch of a packed batch, the rows that it shares with its trunk.

A branch, see `clara.text.branches`, attends to the first rows of another sequence and to its own.
With keys and values of the shared rows in front of those of each branch, a branch is a sequence
whose last rows are to be computed, which is what memory attention computes for the memory rows of
a document. Only keys and values are repeated. All else in the backbone sees each row once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from clara.text.packing import Branch, PackedBatch


@dataclass(frozen=True)
class BranchedRows:
    """Where the rows of a batch with branches lie, before and after shared rows are repeated.

    Attributes:
        lengths: rows of each sequence of the batch.
        branches: of the last sequences; at least one.
    """

    lengths: list[int]
    branches: list[Branch]

    @classmethod
    def of(cls, batch: PackedBatch) -> BranchedRows:
        return cls(batch.lengths, batch.branches)

    @property
    def own(self) -> list[int]:
        """Rows of each branch that it does not share."""
        return self.lengths[-len(self.branches) :]

    @property
    def first(self) -> int:
        """The first row of the branches in the packed sequence."""
        return sum(self.lengths) - sum(self.own)

    @property
    def unrolled(self) -> list[int]:
        """Rows of each branch with those that it shares."""
        return [branch.rows + own for branch, own in zip(self.branches, self.own, strict=True)]

    @property
    def own_rows(self) -> Tensor:
        """int64 `[sum(own)]`, where the own rows lie among the unrolled ones."""
        own = torch.tensor(self.own)
        ends = torch.tensor(self.unrolled).cumsum(0)
        within = torch.cat([torch.arange(-count, 0) for count in self.own])
        return ends.repeat_interleave(own) + within

    def unroll(self, x: Tensor) -> Tensor:
        """Rows of the branches, each with its shared rows in front.

        Args:
            x: `[T, …]`, rows of the packed sequence.

        Returns:
            `[sum(unrolled), …]`. Gradients of the copies of a shared row are added up in one sum:
            16 additions one by one would round a bfloat16 each time, and additions that race on a
            GPU would differ from run to run.
        """
        sequences = x.split(self.lengths)
        each = [-1] * x.dim()
        copies = {
            branch: iter(sequences[branch.trunk][: branch.rows].expand(count, *each).unbind())
            for branch, count in Counter(self.branches).items()
        }
        parts: list[Tensor] = []
        for branch, own in zip(self.branches, sequences[-len(self.branches) :], strict=True):
            parts += (next(copies[branch]), own)
        return torch.cat(parts)
