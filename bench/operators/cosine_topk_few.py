"""Exact search by few queries, which reading limits."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case, Setting, Target
from .search import DTYPES, search_case

BANDWIDTH = Target("B <= 8: 85% of copy bandwidth", "bandwidth", at_least=0.85)


def cases(setting: Setting) -> Iterator[Case]:
    for count, width in [(70, 130)] if setting.tiny else [(1_000_000, 576), (20_000, 32_768)]:
        for dtype in DTYPES:
            for batch in (1, 8):
                sizes = (batch, count, width)
                yield search_case(setting, "cosine_topk_few", sizes, dtype, (BANDWIDTH,))
