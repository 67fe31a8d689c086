"""Straight-through top-k as the public reference implementation computes it.

Written from a description of what it does: a loop over the slots on float32 copies of all
candidates, a one-hot choice with the gradient of a softmax, and one product of the choices
`[B, k, N]` with the candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.baselines.cosine import normalise_and_bmm


def straight_through_loop(
    scores: Tensor, memory: Tensor, k: int, temperature: float, mask: str = "reference"
) -> tuple[Tensor, Tensor]:
    """Selected memory `[B, k, ...]` and indices `[B, k]`.

    Args:
        mask: "reference" takes what is left by log(1 - taken + 1e-8), as the reference does;
            "exact" excludes what was taken.
    """
    logits = scores.float() / temperature  # [B, N]
    candidates = memory.float().flatten(2)  # [B, N, D]
    count = scores.shape[1]
    indices = scores.topk(k, dim=1).indices
    taken = torch.zeros_like(logits)
    choices = []
    for slot in range(k):
        if mask == "reference":
            open_logits = logits + torch.log(1 - taken + 1e-8)
        else:
            open_logits = logits.masked_fill(taken > 0, -torch.inf)
        soft = open_logits.softmax(dim=-1)
        hard = one_hot(indices[:, slot], count).to(soft.dtype)
        choices.append(hard + soft - soft.detach())
        taken = taken + hard
    selected = torch.einsum("bkn,bnd->bkd", torch.stack(choices, dim=1), candidates)
    return selected.to(memory.dtype).unflatten(2, memory.shape[2:]), indices


def rank_and_select_loop(
    query: Tensor, memory: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Query `[B, ...]` and candidates `[B, N, ...]`: cosines in float32, then the loop."""
    scores = normalise_and_bmm(query.flatten(1).float(), memory.flatten(2).float())
    return straight_through_loop(scores, memory, k, temperature, "exact")
