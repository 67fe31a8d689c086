"""Projection of rows onto the simplex."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from baselines.sparsemax import sorted_sparsemax
from torch import Tensor

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


def _prepare(find: Callable[[], Callable[[Tensor], Tensor]], backward: bool) -> Prepare:
    def prepare(inputs: tuple[Tensor, Tensor]) -> Run:
        x, grad = inputs
        function = find()
        return Run(gradients(function, (x,), grad) if backward else lambda: function(x))

    return prepare
