"""`clara doctor`: what is installed and what computes what on this machine."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import clara
from clara.cli import options
from clara.cli.output import one_line, print_json

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


def doctor(as_json: options.Json = False) -> None:
    """Report versions, what was compiled, and which device serves which operator."""
    report = diagnose()
    if as_json:
        print_json(report)
        return
    for line in lines(report):
        print(one_line(line))


def diagnose() -> dict[str, Any]:
    """The report of `clara doctor --json`."""
    import torch

    build = build_report()
    return {
        "clara": clara.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "missing_extras": missing_extras(),
        "torch_cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "kernels": build,
        "devices": devices(build),
        "operators": operators(build),
    }


def version(package: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_extras() -> dict[str, list[str]]:
    """Packages that are not installed, by the extra that asks for them.

    Empty where this is a bare source tree, of which pip knows no extras.
    """
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    missing = {}
    for extra in metadata.get_all("Provides-Extra") or []:
        absent = [
            requirement.name
            for requirement in requirements
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
            and version(requirement.name) is None
        ]
        if absent:
            missing[extra] = absent
    return missing


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
    from clara_kernels.dispatch import computed_by, declared
    from clara_kernels.scoring import compiled

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


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a reader."""
    kernels = report["kernels"]
    shown = [
        f"clara {report['clara']}, Python {report['python']}, {report['platform']}",
        ", ".join(f"{name} {found or 'missing'}" for name, found in report["packages"].items()),
        f"PyTorch: CUDA {report['torch_cuda']}"
        if report["torch_cuda"]
        else "PyTorch: CPU-only build, a GPU would not be used",
        f"CPU threads: {report['torch_threads']}",
    ]
    if kernels["error"] is not None:
        shown.append(f"clara_kernels: the compiled module does not load: {kernels['error']}")
    elif not kernels["compiled"]:
        shown.append(f"clara_kernels: not compiled: {kernels['reason']}")
    else:
        shown.append(
            f"clara_kernels: {kernels['compiler']}, {kernels['build_type']}; "
            f"this processor runs {', '.join(kernels['simd_available'])}; {kernels['simd']} is used"
        )
        shown.append(
            f"clara_kernels: CUDA {kernels['cuda']['version']} code for "
            f"{' '.join(kernels['cuda']['architectures'])}"
            if kernels["cuda"]
            else "clara_kernels: CPU-only build, no CUDA code"
        )
    for device in report["devices"]:
        code = device["compiled_code"]
        with_code = f"runs the compiled {code}" if code else "has no code in the compiled module"
        shown.append(
            f"{device['device']}: {device['name']} ({device['architecture']}), {with_code}"
        )
    if not report["devices"]:
        shown.append("CUDA devices: none visible")
    for name, served in report["operators"].items():
        shown.append(f"{name}: CPU {served['cpu']}, CUDA {served['cuda']}")
    if report["packages"]["triton"] is None:
        shown.append("triton is missing: a GPU would run the PyTorch references")
    for extra, absent in report["missing_extras"].items():
        shown.append(f"extra [{extra}] is missing {', '.join(absent)}")
    return shown
