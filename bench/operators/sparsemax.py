"""Projection of rows onto the simplex."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.baselines.sparsemax import entmax_sparsemax, liger_sparsemax, sorted_sparsemax

from .case import Case, Prepare, Run, Setting, Target, gradients, operator

BANDWIDTH = Target("80% of copy bandwidth, forward and backward", "bandwidth", at_least=0.8)
SORT = Target("forward: 10 times a sort", "ratio", "sort", 10.0)


def cases(setting: Setting) -> Iterator[Case]:
    elements = setting.size(1 << 26, 1 << 10)
    widths = (64, 200) if setting.tiny else (1024, 4096, 32768)
    for dtype in (torch.float32,) if setting.tiny else (torch.bfloat16, torch.float32):
        for columns in widths:
            shape = (elements // columns, columns)
            moved = shape[0] * columns * dtype.itemsize
            for backward in (False, True):
                yield Case(
                    operator="sparsemax",
                    name=f"{str(dtype)[6:]}, {columns} columns, "
                    + ("backward" if backward else "forward"),
                    inputs=lambda seed, shape=shape, dtype=dtype: setting.randn(
                        seed, shape, shape, dtype=dtype
                    ),
                    ours=_prepare(lambda: operator("sparsemax"), backward),
                    baselines={"sort": _prepare(lambda: sorted_sparsemax, backward)},
                    bytes=moved * (3 if backward else 2),
                    timing="graph",
                    targets=(BANDWIDTH,) if backward else (BANDWIDTH, SORT),
                )


def without_memory(setting: Setting) -> Iterator[Case]:
    """The cases of `pytest bench/`: no compression rate changes them."""
    elements = setting.size(1 << 26, 1 << 10, 1 << 20)
    ways = {
        "eager": sorted_sparsemax,
        "torch.compile": setting.compiled(sorted_sparsemax),
        "entmax": entmax_sparsemax,
        "Liger": liger_sparsemax,
    }
    for columns in (setting.size(1024, 64, 1024), setting.size(32768, 256, 16384)):
        shape = (elements // columns, columns)
        for backward in (False, True):
            baselines = {
                name: _prepare(lambda function=function: function, backward)
                for name, function in ways.items()
            }
            yield Case(
                operator="sparsemax",
                name="backward" if backward else "forward",
                inputs=lambda seed, shape=shape: setting.randn(seed, shape, shape),
                ours=_prepare(lambda: operator("sparsemax"), backward),
                baselines=baselines,
                bytes=elements * setting.dtype.itemsize * (3 if backward else 2),
                # Largest value, two sums and a count, a difference and a comparison; backward a
                # sum and a difference.
                operations=elements * (2 if backward else 6),
                tolerance=setting.tolerance,
                details={"columns": columns},
            )


def _prepare(find: Callable[[], Callable[[Tensor], Tensor]], backward: bool) -> Prepare:
    def prepare(inputs: tuple[Tensor, Tensor]) -> Run:
        x, grad = inputs
        function = find()
        return Run(gradients(function, (x,), grad) if backward else lambda: function(x))

    return prepare
