"""The dtype of a model's activations where a configuration leaves it open.

A processor with dot products of bfloat16 multiplies matrices about twice as fast in bfloat16 as in
float32, and reads half the bytes. One without them computes bfloat16 in float32, with a conversion
before and after: slower than float32 alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import torch

from clara.config import CpuDtypeName, DtypeName
from clara.errors import ClaraError

VARIABLE = "CLARA_CPU_DTYPE"
"""Environment variable that decides in the processor's place."""

# The instructions as torch and Linux spell them, and what people call them.
_NAMES = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
_INT8_NAMES = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
}
_CPUINFO = Path("/proc/cpuinfo")


class ProcessorError(ClaraError, ValueError):
    """`CLARA_CPU_DTYPE` asks for what does not exist, or for what the processor cannot do."""


@dataclass(frozen=True)
class CpuDtype:
    """The dtype that `dtype="auto"` takes on CPUs.

    Attributes:
        name: "float32" or "bfloat16".
        reason: why, as the end of a sentence.
    """

    name: CpuDtypeName
    reason: str


def torch_dtype(name: DtypeName | None, device: torch.device) -> torch.dtype:
    """The dtype of activations on a device.

    Args:
        name: as in `ClaraConfig.dtype`. None is float32 on a CPU, "auto" is what `cpu_dtype` says
            there; both are bfloat16 elsewhere.

    Raises:
        ProcessorError: see `cpu_dtype`.
    """
    if name is None or (name == "auto" and device.type != "cpu"):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name == "auto":
        name = cpu_dtype().name
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def cpu_dtype() -> CpuDtype:
    """What "auto" takes on this machine's processor.

    Raises:
        ProcessorError: `CLARA_CPU_DTYPE` is neither "float32" nor "bfloat16", or it is "bfloat16"
            on a processor without the instructions.
    """
    return choose(os.environ.get(VARIABLE), bfloat16_instructions())


def choose(wanted: str | None, instructions: list[str]) -> CpuDtype:
    """What "auto" takes.

    Args:
        wanted: value of `CLARA_CPU_DTYPE`; None or "" where it is not set.
        instructions: names of the processor's instructions for bfloat16 that PyTorch uses.

    Raises:
        ProcessorError: see `cpu_dtype`.
    """
    has = " and ".join(instructions)
    if wanted and wanted not in get_args(CpuDtypeName):
        choices = " or ".join(get_args(CpuDtypeName))
        raise ProcessorError(f"{VARIABLE} must be {choices}, got {wanted!r}")
    if wanted == "bfloat16" and not instructions:
        raise ProcessorError(
            f"{VARIABLE} is bfloat16, but PyTorch finds no instructions for it on this processor "
            f"({', '.join(_NAMES.values())}); unset it or set it to float32"
        )
    if wanted == "bfloat16":
        return CpuDtype("bfloat16", f"{VARIABLE} says so")
    if wanted == "float32":
        return CpuDtype("float32", f"{VARIABLE} says so")
    if instructions:
        return CpuDtype("bfloat16", f"the processor has {has}")
    return CpuDtype("float32", "PyTorch finds no fast bfloat16 on this processor")


def bfloat16_instructions() -> list[str]:
    """Names of this processor's instructions for bfloat16 that PyTorch uses; none if it uses none.

    PyTorch reaches them through oneDNN alone, which builds for macOS lack.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return []
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return names_of(_flags())


def int8_instructions() -> tuple[str, ...]:
    """Names of this processor's instructions for products of 8-bit integers that PyTorch uses.

    As those for bfloat16, it reaches them through oneDNN alone. Those of Arm are left out: there
    PyTorch has other products of integers, which were not measured.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return ()
    return _exact_int8_instructions()


@cache
def _exact_int8_instructions() -> tuple[str, ...]:
    """The processor's, unless oneDNN was told to use older ones (`ONEDNN_MAX_CPU_ISA`).

    Those add pairs of products in 16 bits, which is too few for large codes.
    """
    names = tuple(names_of(_flags(), _INT8_NAMES))
    if not names:
        return ()
    codes = torch.full((64, 256), 127, dtype=torch.int8)
    return names if bool((torch._int_mm(codes, codes.T) == 256 * 127**2).all()) else ()


def _flags() -> list[str]:
    """What the processor can do, as torch and Linux spell it."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return [name for name, value in capabilities.items() if value is True]
    if not _CPUINFO.exists():  # an earlier release of torch, not on Linux
        return []
    return linux_flags(_CPUINFO.read_text(errors="replace"))


def names_of(flags: Iterable[str], known: Mapping[str, str] = _NAMES) -> list[str]:
    """Names of instructions among a processor's flags; those for bfloat16 if nothing is said."""
    found = set(flags)
    return [name for flag, name in known.items() if flag in found]


def linux_flags(cpuinfo: str) -> list[str]:
    """The flags of the first processor in the text of `/proc/cpuinfo`."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # on x86 and on Arm
            return value.split()
    return []
