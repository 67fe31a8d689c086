"""Losses of next tokens straight from hidden states, without the whole logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CHUNK_LOGITS = 1 << 24
"""Most logits held at once, 64 MiB in float32."""

LossOfLogits = Callable[..., tuple[Tensor, Callable[[], Tensor]]]
"""Takes logits `[rows, V]`, which it may overwrite, and what they are compared with, `[rows, …]`.

Returns the sum over rows, 0-d, and a function that gives its gradient in the logits.
"""


def plain_weight(head: nn.Module) -> Tensor | None:
    """The weight of an output head that is a linear layer without bias; None of any other."""
    weight = getattr(head, "weight", None)
    plain = type(head) is nn.Linear and head.bias is None
    return weight if plain and isinstance(weight, Tensor) else None


def chunked_loss(loss: LossOfLogits, hidden: Tensor, weight: Tensor, *targets: Tensor) -> Tensor:
    """Sum over positions of a loss of their logits, differentiable in `hidden` and `weight`.

    The output head is applied to chunks of `CHUNK_LOGITS`, whose gradient is taken at once, so that
    neither the forward nor the backward pass holds `[P, V]`.

    Args:
        hidden: `[P, H]`, the states the positions are predicted from.
        weight: `[V, H]`, of the output head.
        targets: `[P, …]` each, what `loss` compares logits with.
    """
    total: Tensor = _ChunkedLoss.apply(loss, hidden, weight, *targets)
    return total


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: LossOfLogits, hidden: Tensor, weight: Tensor, *targets: Tensor
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[1:3]
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        rows = max(CHUNK_LOGITS // weight.shape[0], 1)
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            part = hidden[chunk]
            logits = nn.functional.linear(part, weight)
            value, gradient_of_logits = loss(logits, *(each[chunk] for each in targets))
            total = total + value
            if not (need_hidden or need_weight):
                continue
            gradient = gradient_of_logits().to(part.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = gradient @ weight
            if grad_weight is not None:
                grad_weight += (gradient.T @ part).to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.targets = len(targets)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            None if value is None else value * grad.to(value.dtype) for value in ctx.saved_tensors
        )
        return None, *gradients, *[None] * ctx.targets
