"""The limits of a device that times are compared with."""

import torch

from bench.ceilings import measured_ceilings


def test_those_of_a_dry_run_are_there():
    found = measured_ceilings(torch.device("cpu"), tiny=True)
    assert set(found) == {"bandwidth", "matrix_rate"}
    assert all(1e3 < value < 1e14 for value in found.values())
