"""The checks of `clara doctor`: what is fine, missing or slow, and how to fix it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clara.terminal.printing import one_line

State = Literal["fine", "missing", "slow"]

# What an extra is for. The others are for people who work on the project.
USES = {
    "quant": "backbones in 4 bits, and in 8 bits on a GPU",
    "flash": "the attention of flash-attn while generating",
    "faiss": "FAISS as the first of two stages of a search",
    "gguf": "backbones in GGUF files",
    "synthesis": "`clara synthesize` with a server",
    "eval": "BM25, scores of rankings and ROUGE-L in `clara evaluate`",
    "train": "`clara train`",
    "plot": "`clara plot` and the pictures of `clara bench report`",
    "datasets": "data sets of the Hugging Face hub in `clara index build`",
    "files": "HTML, PDF and DOCX files in `clara corpus`",
    "demo": "`clara demo`",
}
BUILD = "pip install --force-reinstall --no-deps ."
"""Run in a checkout, it compiles the extension again."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        mend: a command, where something is missing or slow and a command helps.
    """

    state: State
    text: str
    mend: str | None = None

    def __str__(self) -> str:
        mend = f": {self.mend}" if self.mend else ""
        return f"{self.state:<8} {one_line(self.text + mend)}"


def checks(report: dict[str, Any]) -> list[Check]:
    """Everything in a report of `clara.reports.diagnosis`, judged."""
    return [
        Check("fine", f"clara {report['clara']}, Python {report['python']}, {report['platform']}"),
        *_packages(report),
        *_torch(report),
        *_kernels(report),
        *_devices(report),
        *_operators(report),
        *_extras(report),
    ]


def conclusion(found: list[Check]) -> str:
    """The last line."""
    counts = [
        f"{count} {state}"
        for state in ("missing", "slow")
        if (count := sum(each.state == state for each in found))
    ]
    if not counts:
        return "Everything is fine."
    return f"{' and '.join(counts)}; a line ends with the command that fixes it, if there is one"


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU with a driver, whatever PyTorch makes of it."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _packages(report: dict[str, Any]) -> list[Check]:
    """The packages that all of clara needs; extras have lines of their own."""
    installed = [f"{name} {found}" for name, found in report["packages"].items() if found]
    shown = [Check("fine", ", ".join(installed))]
    for name, wanted in report["missing_packages"].items():
        found = report["packages"].get(name)
        what = f"{name} {found} is too old" if found else f"{name} is missing"
        if name == "triton":
            what += "; without it a GPU would run the PyTorch references"
        shown.append(Check("missing", what, f"pip install {shlex.quote(wanted)}"))
    return shown


def _torch(report: dict[str, Any]) -> list[Check]:
    shown = []
    if report["torch_cuda"]:
        shown.append(Check("fine", f"PyTorch: CUDA {report['torch_cuda']}"))
    elif report["gpu"]:
        text = "PyTorch: CPU-only build, the GPU of this machine is not used"
        shown.append(Check("slow", text, "pip install --force-reinstall torch"))
    else:
        shown.append(Check("fine", "PyTorch: CPU-only build, a GPU would not be used"))
    threads, processors = report["torch_threads"], report["processors"]
    text = f"CPU threads: {threads}, on {processors} processors"
    if 2 * threads < processors:  # PyTorch takes one for each core, which may be two processors
        shown.append(Check("slow", text, f"export OMP_NUM_THREADS={processors}"))
    else:
        shown.append(Check("fine", text))
    int8 = " and ".join(report["cpu_int8"]) or "none that PyTorch uses"
    shown.append(Check("fine", f"CPU instructions for quantization int8: {int8}"))
    dtype, reason = report["cpu_dtype"]["auto"], report["cpu_dtype"]["reason"]
    if dtype is None:
        return [*shown, Check("missing", f"CPU dtype: {reason}", "unset CLARA_CPU_DTYPE")]
    return [*shown, Check("fine", f"CPU dtype: auto is {dtype}, because {reason}")]


def _kernels(report: dict[str, Any]) -> list[Check]:
    kernels = report["kernels"]
    if kernels["error"] is not None:
        text = f"clara_kernels: the compiled module does not load ({kernels['error']})"
        return [Check("missing", text, BUILD)]
    if not kernels["compiled"]:
        text = f"clara_kernels: not compiled ({kernels['reason']}), searches run in PyTorch"
        return [Check("slow", text, BUILD)]
    shown = [
        Check(
            "fine",
            f"clara_kernels: {kernels['compiler']}, {kernels['build_type']}; this processor runs "
            f"{', '.join(kernels['simd_available'])}; {kernels['simd']} is used",
        )
    ]
    if kernels["cuda"]:
        architectures = " ".join(kernels["cuda"]["architectures"])
        text = f"clara_kernels: CUDA {kernels['cuda']['version']} code for {architectures}"
        shown.append(Check("fine", text))
    elif report["devices"]:
        text = "clara_kernels: CPU-only build, searches on the GPU run in PyTorch"
        shown.append(Check("slow", text, f"CLARA_CUDA=ON {BUILD}"))
    else:
        shown.append(Check("fine", "clara_kernels: CPU-only build, no CUDA code"))
    return shown


def _devices(report: dict[str, Any]) -> list[Check]:
    shown = []
    for device in report["devices"]:
        name = f"{device['device']}: {device['name']} ({device['architecture']})"
        if device["compiled_code"]:
            text = f"{name}, runs the compiled {device['compiled_code']}"
            shown.append(Check("fine", text))
        elif report["kernels"]["cuda"]:
            number = device["architecture"].removeprefix("sm_")
            text = f"{name}, has no code in the compiled module"
            shown.append(Check("slow", text, f"CLARA_CUDA_ARCHS={number} {BUILD}"))
        else:
            shown.append(Check("fine", f"{name}, has no code in the compiled module"))
    if not shown and report["torch_cuda"] and report["gpu"]:
        text = "CUDA devices: none visible, though there is a driver; see what nvidia-smi says"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown.append(Check("slow", text, None if hidden is None else "unset CUDA_VISIBLE_DEVICES"))
    elif not shown:
        shown.append(Check("fine", "CUDA devices: none visible"))
    return shown


def _operators(report: dict[str, Any]) -> list[Check]:
    return [
        Check("fine", f"{name}: CPU {served['cpu']}, CUDA {served['cuda']}")
        for name, served in report["operators"].items()
    ]


def _extras(report: dict[str, Any]) -> list[Check]:
    shown = []
    for extra, wanted in report["missing_extras"].items():
        if extra not in USES or (extra == "flash" and not report["devices"]):
            continue
        text = f"{' and '.join(wanted)}, for {USES[extra]}"
        packages = " ".join(shlex.quote(each) for each in wanted.values())
        shown.append(Check("missing", text, f"pip install {packages}"))
    return shown
