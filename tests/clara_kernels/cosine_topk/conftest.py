"""`cosine_topk` by each instruction set and by the reference."""

from __future__ import annotations

import pytest
from search_oracle import (
    SIMD,
)

from clara_kernels import cosine_topk
from clara_kernels.cosine_topk import reference


@pytest.fixture(params=[*SIMD, "reference"])
def topk(request, monkeypatch):
    """`cosine_topk` by one instruction set, or by the PyTorch reference."""
    if request.param == "reference":
        return lambda q, c, k, mask=None: reference.cosine_topk(q, c, None, mask, k)
    monkeypatch.setenv("CLARA_SIMD", request.param)
    return lambda q, c, k, mask=None: cosine_topk(q, c, k, mask=mask)
