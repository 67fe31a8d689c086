"""Memory vectors to 8 and 4 bits and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from bench.baselines.quantization import (
    dequantize_groups,
    dequantize_rows,
    quantize_groups,
    quantize_rows,
)
from clara_kernels.quantization import reference

from .case import Case, Run, Setting, memory_tokens, operator


def cases(setting: Setting) -> Iterator[Case]:
    item = setting.dtype.itemsize
    for width in (64, 128) if setting.tiny else (576, 2048, 4096):
        rows = setting.size(1 << 27, 1 << 10) // width
        shape = (rows, width)
        for bits, quantize, dequantize in (
            (8, quantize_rows, dequantize_rows),
            (4, quantize_groups, dequantize_groups),
        ):
            scales = rows if bits == 8 else rows * width // 64
            common: dict[str, Any] = {
                "operator": "quantization",
                "inputs": partial(_inputs, setting, shape, bits),
                "bytes": rows * width * item + rows * width * bits // 8 + 4 * scales,
                "timing": "graph",
                "tolerance": 0.0,
            }
            yield Case(
                name=f"{bits} bits, H={width}, quantize",
                ours=_first(partial(_quantize, bits)),
                baselines={"plain torch": _first(quantize)},
                **common,
            )
            yield Case(
                name=f"{bits} bits, H={width}, dequantize",
                ours=_rest(_dequantize),
                baselines={"plain torch": _rest(dequantize)},
                **common,
            )


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """The cases of `pytest bench/`: the memory of some documents."""
    documents, hidden = setting.size(2048, 4, 256), setting.hidden
    shape = rows, width = documents * memory_tokens(rate), hidden
    for bits, quantize, dequantize in (
        (8, quantize_rows, dequantize_rows),
        (4, quantize_groups, dequantize_groups),
    ):
        scales = rows if bits == 8 else rows * width // 64
        common: dict[str, Any] = {
            "inputs": partial(_inputs, setting, shape, bits),
            "bytes": rows * width * setting.dtype.itemsize + rows * width * bits // 8 + 4 * scales,
            "tolerance": 1e-6,  # of scales; codes have to be the same
        }
        yield Case(
            operator="quantize_memory",
            name=f"{bits} bits",
            ours=_first(partial(_quantize, bits)),
            baselines={
                "eager": _first(quantize),
                "torch.compile": _first(setting.compiled(quantize)),
            },
            reference=_first(partial(reference.quantize, bits=bits)),
            operations=4 * rows * width,  # magnitude, largest, division, rounding
            **common,
        )
        yield Case(
            operator="dequantize_memory",
            name=f"{bits} bits",
            ours=_rest(_dequantize),
            baselines={
                "eager": _rest(dequantize),
                "torch.compile": _rest(setting.compiled(dequantize)),
            },
            reference=_rest(
                lambda codes, scales, dtype: reference.dequantize(codes, scales, width, dtype)
            ),
            operations=rows * width,
            **common,
        )


def _inputs(setting: Setting, shape: tuple[int, int], bits: int, seed: int) -> Any:
    memory = setting.randn(seed, shape)
    return memory, *_quantize(bits, memory)


def _first(function: Callable[..., Any]) -> Callable[[Any], Run]:
    return lambda inputs: Run(lambda: function(inputs[0]))


def _rest(function: Callable[..., Any]) -> Callable[[Any], Run]:
    return lambda inputs: Run(lambda: function(inputs[1], inputs[2], inputs[0].dtype))


def _quantize(bits: int, memory: Tensor) -> tuple[Tensor, Tensor]:
    return operator("quantize_memory")(memory, bits)


def _dequantize(codes: Tensor, scales: Tensor, dtype: Any) -> Tensor:
    return operator("dequantize_memory")(codes, scales, dtype=dtype)
