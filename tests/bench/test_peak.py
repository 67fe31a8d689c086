"""Peak memory, measured in a process of its own."""

import numpy as np

from bench.peak import peak_memory


def prepare(megabytes):
    return lambda: np.ones(megabytes << 20, dtype=np.uint8).sum()


def test_what_a_function_needs_at_its_peak():
    small, large = (peak_memory(prepare, megabytes) for megabytes in (8, 64))
    assert 50 << 20 < large - small < 62 << 20
