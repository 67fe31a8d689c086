"""What `adapted_linear` computes, in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    scaling: float,
) -> Tensor:
    """`x W' + scaling · (x A') B' + bias`, computed in float32 at least and rounded once."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    out = linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if down is not None and up is not None:
        hidden = (scaling * linear(x.to(dtype), down.to(dtype))).to(x.dtype)
        out += linear(hidden.to(dtype), up.to(dtype))
    return out.to(x.dtype)
