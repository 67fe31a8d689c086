"""Exact search by many queries, which multiplying limits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .case import Case, Setting, Target
from .search import BASELINE, DTYPES, search_case

SHORT = (Target("bfloat16, D=576: 2 times matmul and topk", "ratio", BASELINE, 2.0),)
LONG = (
    Target("bfloat16, D=32768: 0.8 times matmul and topk", "ratio", BASELINE, 0.8),
    Target("bfloat16, D=32768: 45% of the matrix rate", "matrix rate", at_least=0.45),
)


def cases(setting: Setting) -> Iterator[Case]:
    batch = setting.size(256, 24)
    for short, (count, width) in [
        (True, (setting.size(1_000_000, 72), setting.size(576, 64))),
        (False, (setting.size(20_000, 40), setting.size(32_768, 256))),
    ]:
        for dtype in (torch.bfloat16, *(each for each in DTYPES if each != torch.bfloat16)):
            promised = () if dtype != torch.bfloat16 else SHORT if short else LONG
            sizes = (batch, count, width)
            yield search_case(setting, "cosine_topk_many", sizes, dtype, promised)
