"""Peak memory, measured in a process of its own."""

import os

import numpy as np
import pytest

from bench.apart import apart
from bench.peak import peak_memory


def prepare(megabytes):
    return lambda: np.ones(megabytes << 20, dtype=np.uint8).sum()


def test_what_a_function_needs_at_its_peak():
    small, large = (peak_memory(prepare, megabytes) for megabytes in (8, 64))
    assert 50 << 20 < large - small < 62 << 20


def test_what_is_measured_apart_comes_back():
    assert apart(divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match="the measuring process ended with 3"):
        apart(os._exit, 3)
