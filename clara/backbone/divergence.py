"""How far a model's next-token probabilities are from a teacher's, of which the largest are kept.

A teacher's probabilities are kept as classes: a few most likely tokens with a class each, and all
other tokens together as the last class. The divergence is that of these classes,
KL(teacher || model). Between whole vocabularies it is never smaller.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clara.backbone.chunked_head import chunked_loss, plain_weight
from clara.errors.checks import as_integer

LEAST = -1e4
"""Smallest logarithm of a probability; its exponential is 0, and it fits float16."""


def most_likely(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The most likely tokens of each position, and the logarithms of the classes' probabilities.

    Args:
        logits: `[P, V]`.
        top: tokens with a class of their own, K.

    Returns:
        int64 `[P, K]`, most likely first, and float32 (float64 for such logits) `[P, K + 1]`, the
        other tokens' probability last.

    Raises:
        ValueError: there is no other token.
    """
    top = as_integer(top, "top", least=1)
    if top >= logits.shape[1]:
        raise ValueError(f"top must be below the vocabulary's {logits.shape[1]} tokens, got {top}")
    logits = logits.to(_wide(logits))
    own, ids = logits.topk(top)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    classes = torch.cat([own, rest], 1)
    return ids, classes.log_softmax(1).clamp_min(LEAST)


def divergence_of_logits(logits: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
    """Sum over positions of the divergence from a teacher (a 0-d tensor), differentiable.

    Computed in float32, or in float64 for such logits.

    Args:
        logits: `[P, V]`, of the model.
        ids: int64 `[P, K]`, the tokens with a class of their own, all different.
        log_probs: `[P, K + 1]`, the teacher's logarithms; their exponentials add up to 1.
    """
    logits = logits.to(_wide(logits))
    log_probs = log_probs.to(logits.dtype)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    own = torch.cat([logits.gather(1, ids), rest], 1).log_softmax(1)
    return (log_probs.exp() * (log_probs - own)).sum()


def head_divergence(head: nn.Module, hidden: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
    """The divergence of `divergence_of_logits` straight from hidden states, see `chunked_loss`.

    Args:
        head: the output head, an `nn.Linear` without bias, or any module.
        hidden: `[P, H]`, the states the positions are predicted from.
        ids, log_probs: see `divergence_of_logits`.
    """
    weight = plain_weight(head)
    if weight is None:
        return divergence_of_logits(head(hidden), ids, log_probs)
    return chunked_loss(_divergence, hidden, weight, ids, log_probs)


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _divergence(
    logits: Tensor, likely: Tensor, log_probs: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """See `chunked_head.LossOfLogits`."""
    logits = logits.to(_wide(logits))
    teacher = log_probs.to(logits.dtype)
    own = logits.gather(1, likely)
    others = logits.scatter_(1, likely, -torch.inf)
    rest = others.logsumexp(1, keepdim=True)
    student = torch.cat([own, rest], 1).log_softmax(1)

    def gradient() -> Tensor:
        # A class' gradient is student - teacher; the last one's goes to its tokens by their share
        # in it, and is 0 at the tokens with a class of their own, of which exp is 0.
        difference = student.exp() - teacher.exp()
        shares = others.sub_(rest).exp_()
        return shares.mul_(difference[:, -1:]).scatter_(1, likely, difference[:, :-1])

    return (teacher.exp() * (teacher - student)).sum(), gradient
