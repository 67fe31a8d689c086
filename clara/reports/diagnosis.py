"""The report of `clara doctor`: installed packages, devices, and which code runs each operator."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any

from clara.reports.remedies import has_gpu

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "clara-rag"
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "safetensors",
    "huggingface-hub",
    "pylance",
    "pyarrow",
    "bitsandbytes",
    "gguf",
)
COMPILED = "compiled"
REFERENCE = "PyTorch reference"
SERVED = {"cpu": "vectorised PyTorch", "reference": REFERENCE, "triton": "Triton kernels"}


def diagnose(release: str, cpu_dtype: dict[str, str | None], cpu_int8: list[str]) -> dict[str, Any]:
    """Collect the report that `clara doctor --json` prints, without its verdicts.

    What this module cannot import is given to it.

    Args:
        release: of clara.
        cpu_dtype: "auto", the dtype that the setting `dtype: auto` takes on the CPU, or None where
            an environment variable is wrong; and "reason".
        cpu_int8: the processor's instructions for products of 8-bit integers.
    """
    import torch

    build = build_report()
    return {
        "clara": release,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "missing_packages": missing_packages(),
        "missing_extras": missing_extras(),
        "torch_cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "cpu_dtype": cpu_dtype,
        "cpu_int8": cpu_int8,
        "processors": processors(),
        "gpu": has_gpu(),
        "kernels": build,
        "devices": devices(build),
        "operators": operators(build),
    }


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def version(package: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[tuple[str | None, Requirement]]:
    """What the distribution asks for, with the extra that asks for it, None for all of clara.

    Empty where this is a bare source tree, of which pip knows nothing.
    """
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return []
    found: list[tuple[str | None, Requirement]] = []
    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            found.append((None, requirement))
            continue
        for extra in metadata.get_all("Provides-Extra") or []:
            if marker.evaluate({"extra": extra}):
                found.append((extra, requirement))
    return found


def missing_packages() -> dict[str, str]:
    """Packages that all of clara needs and that are not installed or too old, as pip takes them."""
    return {
        requirement.name: wanted(requirement)
        for extra, requirement in requirements()
        if extra is None and not fulfilled(requirement)
    }


def missing_extras() -> dict[str, dict[str, str]]:
    """Packages that are not installed or too old, by the extra that asks for them."""
    missing: dict[str, dict[str, str]] = {}
    for extra, requirement in requirements():
        if extra is not None and not fulfilled(requirement):
            missing.setdefault(extra, {})[requirement.name] = wanted(requirement)
    return missing


def fulfilled(requirement: Requirement) -> bool:
    installed = version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def wanted(requirement: Requirement) -> str:
    """A requirement as pip takes it, without the condition under which it holds."""
    return f"{requirement.name}{requirement.specifier}"


def build_report() -> dict[str, Any]:
    """`clara_kernels.build_info()`; "error" says why a compiled module that is there fails."""
    try:
        import clara_kernels
    except ImportError as error:
        return {"compiled": False, "reason": None, "cuda": None, "error": str(error)}
    return {**clara_kernels.build_info(), "error": None}


def devices(build: dict[str, Any]) -> list[dict[str, Any]]:
    """CUDA devices that PyTorch sees, and what each runs of the compiled module."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        found.append(
            {
                "device": f"cuda:{number}",
                "name": torch.cuda.get_device_name(number),
                "architecture": f"sm_{major}{minor}",
                "compiled_code": device_code(number) if build["cuda"] else None,
            }
        )
    return found


def device_code(number: int) -> str | None:
    """Architecture of the machine code that a GPU runs of the compiled module, None without."""
    from clara_kernels.build import cuda_device_code

    try:
        binary, _ = cuda_device_code(number)
    except RuntimeError:
        return None
    return f"sm_{binary}"


def operators(build: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What computes each operator on "cpu" and "cuda"."""
    if build["error"] is not None:
        return {}
    import torch

    import clara_kernels
    from clara_kernels.cosine_topk import compiled
    from clara_kernels.dispatch import computed_by, declared

    def served(name: str) -> dict[str, str]:
        if name not in compiled.OPERATORS:
            return {device: SERVED[by] for device, by in computed_by(name).items()}
        keys = {"cpu": "CPU", "cuda": "CUDA"}
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return {
            device: COMPILED if has(f"clara::{name}", key) else REFERENCE
            for device, key in keys.items()
        }

    known = {*declared(), *compiled.OPERATORS}
    return {name: served(name) for name in clara_kernels.__all__ if name in known}
