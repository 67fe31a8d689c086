"""The compression loss' distance between document and memory, by masked means."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss


def masked_mean_loss(hidden: Tensor, is_token: Tensor, is_memory: Tensor) -> Tensor:
    """A padded batch `[N, L, H]` and masks `[N, L]` in its dtype, 1 where a row counts."""
    return mse_loss(_mean(hidden, is_token), _mean(hidden, is_memory))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1).float() / mask.float().sum(1, keepdim=True)
