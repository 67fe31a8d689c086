"""Describes how each kernel is compiled when it is launched, so that this needs no GPU.

Every `triton.py` has `builds(architecture)`: all that its launchers can pick there, made by the
same functions that pick it. `clara_kernels.inspect` compiles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

TYPE_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}

# Triton fuses multiplications and additions unless told otherwise, up to 3.9; pinned so that a
# later version computes the same.
OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Build:
    """One way to compile a kernel: the types of its parameters, its constants and options.

    Attributes:
        kernel: a `triton.jit` function.
        types: of its parameters that are no constants: "*bf16" for a pointer, "i32", "fp32".
        constants: of its `tl.constexpr` parameters.
        registers: at most so many per thread; None leaves it to the assembler, which may prefer a
            few spilled bytes to fewer threads at a time.
        note: what sets this build apart, for people.
        tensor_cores: whether matrix instructions are expected in the machine code.
    """

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3  # what Triton takes where a launch does not say
    registers: int | None = None
    note: str = ""
    tensor_cores: bool = False

    @property
    def name(self) -> str:
        function = self.kernel.fn
        operator = function.__module__.rpartition(".")[0].rpartition(".")[2]
        return f"{operator}.{function.__name__.strip('_')}"


@cache
def architecture_of(device: torch.device) -> int:
    """The architecture of a GPU, such as 90 for sm_90; also 90 for the CPU, the interpreter's."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
