"""Load the compiled module `clara_kernels._C`, if it was built, and describe the build."""

from __future__ import annotations

import importlib
import sysconfig
from types import ModuleType
from typing import Any

import torch  # noqa: F401  # before the compiled module, which is to find what it computes with

from .version import __version__

_COMPUTES = "libtorch_cpu.so"  # on Linux; elsewhere no threads are shared


def _load_native() -> ModuleType | None:
    """The compiled module; None if it was not built. One that is there but broken raises.

    Where it can, it works in PyTorch's threads: see `clara_kernels.threads`.
    """
    name = f"{__package__}._C"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None
    try:
        module.share_threads_of(_COMPUTES)
    except AttributeError as error:
        raise ImportError(
            f"{module.__file__} was built from another version of the sources; run 'pip install .' "
            "again"
        ) from error
    return module


native: Any = _load_native()  # a module or None


def build_info() -> dict[str, Any]:
    """Describe the build: what was compiled, how, and which instruction sets the processor has.

    Returns:
        A JSON-serialisable dict, with the same keys in every build:

        - `version`: of the package.
        - `compiled`: whether the compiled module is there. Without it the operators run their
          PyTorch reference, and `reason` says why it is missing (None when it is not).
        - `compiler`, `build_type`: such as "GCC 12.2.0" and "Release".
        - `simd_available`: instruction sets that were compiled for and that this processor has,
          the plainest first; `simd`: the one used, the last of them unless CLARA_SIMD names one.
        - `cuda`: None for a build without CUDA, else `version` of the linked runtime and
          `architectures`, "sm_90" for machine code and "compute_120" for PTX that the driver
          translates on later GPUs.

    Examples:
        >>> from clara_kernels import build_info
        >>> info = build_info()
        >>> sorted(info)[:4]
        ['build_type', 'compiled', 'compiler', 'cuda']
        >>> info["compiled"] or bool(info["reason"])
        True
    """
    info: dict[str, Any] = {
        "version": __version__,
        "compiled": native is not None,
        "reason": None,
        "compiler": None,
        "build_type": None,
        "simd_available": [],
        "simd": None,
        "cuda": None,
    }
    if native is None:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        info["reason"] = (
            f"clara_kernels/_C{suffix} does not exist: the package was not built for this Python"
        )
    else:
        info.update(native.build_info())
    return info


def cuda_device_code(device: int = 0) -> tuple[int, int]:
    """Find which code of the compiled module GPU `device` runs.

    Returns:
        The architecture of the machine code and of the PTX behind it, such as (90, 120).

    Raises:
        RuntimeError: the module has no CUDA code, none for this GPU, or there is no such GPU or
            driver.
    """
    if native is None or not hasattr(native, "cuda_device_code"):
        raise RuntimeError("clara_kernels was built without CUDA; see clara_kernels.build_info()")
    return native.cuda_device_code(device)
