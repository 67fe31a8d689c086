"""Cross-entropy of chosen positions straight from hidden states, without the whole logits."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clara.backbone.chunked_head import chunked_loss, plain_weight

_BLOCK_LOGITS = 1 << 18
"""Of the rows that a CPU takes at once, 1 MiB in float32: they stay in its cache."""


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
    loss = _cross_entropy_by_blocks if hidden.device.type == "cpu" else _cross_entropy
    return chunked_loss(loss, hidden, weight, targets)


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


def _cross_entropy_by_blocks(
    logits: Tensor, targets: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """See `chunked_head.LossOfLogits`.

    In few passes over rows that are in the cache, without logits of another dtype. The gradient
    costs little beside the exponentials of the loss, and takes the place of the logits.
    """
    rows = max(_BLOCK_LOGITS // max(logits.shape[1], 1), 1)
    total = logits.new_zeros((), dtype=torch.float32)
    for block, wanted in zip(logits.split(rows), targets[:, None].split(rows), strict=True):
        values = block.float()
        largest, own = values.amax(1, keepdim=True), values.gather(1, wanted)
        sums = values.sub_(largest).exp_().sum(1, keepdim=True)
        total += (largest - own + sums.log()).sum()
        values.div_(sums).scatter_add_(1, wanted, values.new_full(wanted.shape, -1.0))
        block.copy_(values)
    return total, lambda: logits
