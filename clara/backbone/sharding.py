"""Reading and writing weights that FSDP has spread over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts; every process has to call this for a sharded one."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def fill(target: Any, value: Tensor) -> None:
    """Write a whole tensor into one that may be sharded."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device, target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)
