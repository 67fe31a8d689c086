"""Logged figures of candidates: recall of their ranking, and compression."""

from __future__ import annotations

import torch
from torch import Tensor

from clara.memory.documents import CompressedDocuments
from clara.training.batches import RankingBatch

CUTOFFS = (1, 3, 5)


def compression_sums(candidates: CompressedDocuments) -> dict[str, Tensor]:
    """What the effective compression of candidates is made of."""
    written = sum(candidates.counts)
    sums = {"text_tokens": sum(candidates.token_counts), "memory_written": written}
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in sums.items()}


def recall_sums(scores: Tensor, batch: RankingBatch) -> dict[str, Tensor]:
    """Sums over questions with known positives of the share of them among the best.

    Args:
        scores: `[ΣN]`, the candidates' scores, question after question.

    Returns:
        "recall@1", "recall@3", "recall@5" and "ranked", the number of those questions.
    """
    totals = {f"recall@{k}": 0.0 for k in CUTOFFS}
    ranked = 0
    for start, names, positives in zip(batch.offsets, batch.candidates, batch.positives):
        if not positives:
            continue
        ranked += 1
        best = scores[start : start + len(names)].argsort(descending=True, stable=True)
        first = best[: max(CUTOFFS)].tolist()
        for k in CUTOFFS:
            totals[f"recall@{k}"] += len(set(first[:k]) & set(positives)) / len(positives)
    sums = {name: torch.tensor(value, dtype=torch.float32) for name, value in totals.items()}
    return {**sums, "ranked": torch.tensor(ranked)}
