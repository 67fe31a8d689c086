"""Tests of `select_topk` by each implementation."""

import pytest
from comparison import poisoned

from clara_kernels.dispatch import cpu_tensors_use

IMPLEMENTATIONS = ["reference", "triton"]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with cpu_tensors_use(request.param), poisoned("select_topk"):
        yield request.param
