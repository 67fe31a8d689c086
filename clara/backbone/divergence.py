"""How far a model's next-token probabilities are from a teacher's, of which the largest are kept.

A teacher's probabilities are kept as classes: a few most likely tokens with a class each, and all
other tokens together as the last class. The divergence is that of these classes,
KL(teacher || model). Between whole vocabularies it is never smaller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clara.backbone import cross_entropy
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
    """The divergence of `divergence_of_logits` straight from hidden states.

    The output head is applied to chunks of `cross_entropy.CHUNK_LOGITS`, whose gradient is taken at
    once: neither the forward nor the backward pass holds `[P, V]`.

    Args:
        head: the output head, an `nn.Linear` without bias, or any module.
        hidden: `[P, H]`, the states the positions are predicted from.
        ids, log_probs: see `divergence_of_logits`.
    """
    weight = getattr(head, "weight", None)
    if type(head) is not nn.Linear or head.bias is not None or not isinstance(weight, Tensor):
        return divergence_of_logits(head(hidden), ids, log_probs)
    loss: Tensor = _ChunkedDivergence.apply(hidden, weight, ids, log_probs)
    return loss


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        wide = _wide(hidden)
        loss = hidden.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        rows = max(cross_entropy.CHUNK_LOGITS // weight.shape[0], 1)
        for start in range(0, hidden.shape[0], rows):
            part, likely = hidden[start : start + rows], ids[start : start + rows]
            teacher = log_probs[start : start + rows].to(wide)
            logits = nn.functional.linear(part, weight).to(wide)
            own = logits.gather(1, likely)
            others = logits.scatter_(1, likely, -torch.inf)
            rest = others.logsumexp(1, keepdim=True)
            student = torch.cat([own, rest], 1).log_softmax(1)
            loss += (teacher.exp() * (teacher - student)).sum()
            if not (need_hidden or need_weight):
                continue
            # A class' gradient is student - teacher; the last one's goes to its tokens by their
            # share in it, and is 0 at the tokens with a class of their own, of which exp is 0.
            difference = student.exp() - teacher.exp()
            gradient = others.sub_(rest).exp_().mul_(difference[:, -1:])  # [rows, V]
            gradient = gradient.scatter_(1, likely, difference[:, :-1]).to(part.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = gradient @ weight
            if grad_weight is not None:
                grad_weight += (gradient.T @ part).to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = (
            None if value is None else value * grad.to(value.dtype) for value in ctx.saved_tensors
        )
        return grad_hidden, grad_weight, None, None
