"""How much memory there is for something new."""

from __future__ import annotations

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device without taking them from others.

    On the CPU what the kernel keeps of files counts as free, as it gives that back; what PyTorch
    keeps of a GPU's memory does not.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
