"""What decides the answers of a model, as a JSON object."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from clara.model.clara import Clara


def model_settings(model: Clara, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """Digest of the backbone and of some adapters, and how the model is run.

    Args:
        adapters: names of those that take part.
    """
    digest = hashlib.sha256(model.backbone_digest.encode())
    for name in adapters:
        for key, value in sorted(model.adapters.state(name).items()):
            rounded = value.to(torch.bfloat16).cpu().contiguous()
            digest.update(f"{name}/{key}".encode())
            digest.update(rounded.view(torch.uint8).numpy().tobytes())
    config = model.config
    return {
        "model": digest.hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": config.quantization,
        "prompt": {"system": config.prompt.system, "user": config.prompt.user},
    }
