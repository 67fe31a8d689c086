"""Cross-entropy of chosen positions straight from hidden states, without the whole logits."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clara.backbone.chunked_head import chunked_loss, plain_weight


def head_cross_entropy(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy of their next token (a 0-d float32 tensor).

    On CUDA through Liger's or cut-cross-entropy's fused kernel if one is installed, otherwise in
    chunks, see `chunked_loss`.

    Args:
        head: the output head, an `nn.Linear` without bias, or any module.
        hidden: `[P, H]`, the states the positions are predicted from.
        targets: int64 `[P]`.
    """
    weight = plain_weight(head)
    if weight is None:
        return cross_entropy(head(hidden).float(), targets, reduction="sum")
    if hidden.is_cuda and hidden.shape[0]:
        fused = _fused(hidden, weight, targets)
        if fused is not None:
            return fused
    return chunked_loss(_cross_entropy, hidden, weight, targets)


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


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """See `chunked_head.LossOfLogits`."""
    logits, wanted = logits.float(), targets[:, None]
    normaliser = logits.logsumexp(1, keepdim=True)

    def gradient() -> Tensor:
        softmax = logits.sub_(normaliser).exp_()
        return softmax.scatter_add_(1, wanted, softmax.new_full(wanted.shape, -1.0))

    return (normaliser - logits.gather(1, wanted)).sum(), gradient
