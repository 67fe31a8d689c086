"""What figures depend on besides the code measured."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import clara_kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("triton", "transformers", "peft")
SOURCES = {"clara": "*.py", "kernels": "*.py", "bench": "*.py", "csrc": "*.*"}
_L2_BYTES = 64 << 20  # where PyTorch does not say


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, and which code this is; None for what there is not."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "capability": list(torch.cuda.get_device_capability(device)) if cuda else None,
        "l2_bytes": l2_bytes(device) if cuda else None,
        "driver": _driver() if cuda else None,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        **{name: _version(name) for name in PACKAGES},
        "clara": clara_kernels.__version__,
        "commit": _commit(),
        "sources": _sources(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def shown_command(words: Sequence[str]) -> str:
    """A command line as results name it, without folders that only one machine has.

    An absolute path below the working directory becomes relative, and another one its last name.
    """
    here = Path.cwd()

    def shown(word: str) -> str:
        option, equals, value = word.partition("=")
        if equals and option.startswith("--"):
            return f"{option}={shown(value)}"
        path = Path(word)
        if not path.is_absolute():
            return word
        return str(path.relative_to(here)) if path.is_relative_to(here) else path.name

    return shlex.join(map(shown, words))


def l2_bytes(device: torch.device) -> int:
    """Size of a GPU's last cache; 0 on CPU."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or _L2_BYTES


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _driver() -> str | None:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, "-dirty" if files of it are changed, but for results, which a run adds to."""
    commit = _output(["git", "describe", "--always", "--exclude=*", "--abbrev=12"])
    code = ["--untracked-files=no", "--", ".", ":!bench/results"]
    changed = _output(["git", "status", "--porcelain", *code])
    return f"{commit}-dirty" if commit and changed else commit


def _output(command: list[str]) -> str | None:
    """The first line that a command prints; None where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def _sources() -> str:
    """Digest of the code: names it where there is no commit to name."""
    digest = hashlib.sha256()
    for folder, kind in SOURCES.items():
        for path in sorted((ROOT / folder).rglob(kind)):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
