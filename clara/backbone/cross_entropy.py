"""Cross-entropy of chosen positions straight from hidden states, without the whole logits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CHUNK_LOGITS = 1 << 24
"""Most logits held at once, 64 MiB in float32."""


def head_cross_entropy(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy of their next token (a 0-d float32 tensor).

    On CUDA through Liger's or cut-cross-entropy's fused kernel if one is installed. Otherwise the
    output head is applied to chunks of `CHUNK_LOGITS`, whose gradient is taken at once, so that
    neither the forward nor the backward pass holds `[P, V]`.

    Args:
        head: the output head, an `nn.Linear` without bias, or any module.
        hidden: `[P, H]`, the states the positions are predicted from.
        targets: int64 `[P]`.
    """
    weight = getattr(head, "weight", None)
    plain = type(head) is nn.Linear and head.bias is None and isinstance(weight, Tensor)
    if not plain or weight is None:
        return cross_entropy(head(hidden).float(), targets, reduction="sum")
    if hidden.is_cuda and hidden.shape[0]:
        fused = _fused(hidden, weight, targets)
        if fused is not None:
            return fused
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets)
    return loss


def _fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor | None:
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets)
    if find_spec("cut_cross_entropy") is not None and weight.dtype != torch.float32:
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(hidden, weight, targets, reduction="sum")
    return None


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        rows = max(CHUNK_LOGITS // weight.shape[0], 1)
        for start in range(0, hidden.shape[0], rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logits = nn.functional.linear(part, weight).float()
            normaliser = logits.logsumexp(1, keepdim=True)
            loss += (normaliser - logits.gather(1, wanted)).sum()
            if not (need_hidden or need_weight):
                continue
            gradient = logits.sub_(normaliser).exp_()  # [rows, V], the softmax
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -1.0))
            gradient = gradient.to(part.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = gradient @ weight
            if grad_weight is not None:
                grad_weight += (gradient.T @ part).to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype),
            None,
        )
