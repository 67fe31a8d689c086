"""Exact search in compressed documents, as `pytest bench/` measures it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .case import Case, Setting, memory_tokens
from .search import rate_case


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """By 8 queries, in rows of the setting's dtype and in codes of 8 bits."""
    width = memory_tokens(rate) * setting.hidden
    sizes = (setting.size(8, 3, 8), setting.size(10_000, 70, 1000), width)
    for dtype in (setting.dtype, torch.int8):
        yield rate_case(setting, sizes, dtype)
