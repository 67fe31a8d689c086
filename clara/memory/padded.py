"""Memory of several documents, which may have unequal numbers of memory tokens, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PaddedMemory:
    """Memory of `N` documents.

    Attributes:
        rows: `[N, m, H]`; documents with fewer than m memory tokens end in rows of zeros.
        counts: memory tokens of each document.
    """

    rows: Tensor
    counts: list[int]

    @classmethod
    def full(cls, rows: Tensor) -> PaddedMemory:
        """Memory `[N, m, H]` in which every document has m memory tokens."""
        return cls(rows, [rows.shape[1]] * len(rows))

    @classmethod
    def of(cls, documents: Sequence[Tensor]) -> PaddedMemory:
        """Memory of documents given one by one, `[m_i, H]`; at least one."""
        padded = pad_sequence(list(documents), batch_first=True)
        return cls(padded, [len(each) for each in documents])

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str) -> PaddedMemory:
        return PaddedMemory(self.rows.to(device), self.counts)

    def documents(self, order: Sequence[int] | None = None) -> list[Tensor]:
        """The memory of each document, `[m_i, H]`, without padding.

        Args:
            order: positions of the documents to give, in that order; all by default.
        """
        chosen = range(len(self)) if order is None else order
        return [self.rows[at, : self.counts[at]] for at in chosen]

    def vectors(self, rule: str) -> Tensor:
        """The vector of each document that its cosine to a question is computed of.

        Args:
            rule: as in `ClaraConfig.ranking`: "flattened" is all memory tokens, one after the
                other; "mean" their mean.

        Returns:
            `[N, m * H]` in the dtype of `rows`, or `[N, H]`, the mean, in float32 (float64 for rows
            in float64). Differentiable in `rows`.
        """
        if rule == "flattened":
            return self.rows.flatten(1)
        dtype = torch.promote_types(self.rows.dtype, torch.float32)
        totals = torch.tensor(self.counts, dtype=dtype, device=self.rows.device)
        return self.rows.sum(1, dtype=dtype) / totals[:, None]

    def queries(self, rule: str) -> Tensor:
        """Questions as documents are compared with them, see `Clara.encode_queries`.

        Returns:
            `[N, m, H]`, or `[N, 1, H]`, the mean.
        """
        return self.rows if rule == "flattened" else self.vectors(rule)[:, None]
