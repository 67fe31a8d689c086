"""Measure how much memory is free on a device."""

from __future__ import annotations

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device.

    On the CPU the kernel's file cache counts as free, because the kernel gives it back. On a GPU
    the memory that PyTorch has cached does not count as free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
