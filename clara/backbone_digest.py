"""Digests of a backbone's weights: what tells backbones apart in a model's fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from clara.backbone_files import BackboneError, resolve_backbone


def sampled_backbone_digest(name_or_path: str) -> str:
    """The digest that earlier versions put into fingerprints: of a sample of every stored weight.

    It reads the first values of each tensor. Use it only to recognise what earlier versions
    wrote: it does not see most changes of the weights, and it depends on how they are stored.

    Raises:
        BackboneError: not found, or without safetensors files.
    """
    source = resolve_backbone(name_or_path)
    try:
        index = cached_file(
            source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False
        )
        if index:
            listed = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
            files = [Path(index).parent / name for name in sorted(set(listed))]
        else:
            files = [Path(cached_file(source, SAFE_WEIGHTS_NAME))]
        sampled = {}
        for file in files:
            with safe_open(file, framework="pt") as weights:
                for name in list(weights.keys()):
                    part = weights.get_slice(name)
                    dimensions = len(part.get_shape())
                    if dimensions == 0:
                        sampled[name] = weights.get_tensor(name).reshape(1)
                    else:
                        sampled[name] = part[:1, :256] if dimensions > 1 else part[:256]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"cannot read weights of {name_or_path!r}: {reason}") from error
    digest = hashlib.sha256()
    for name, values in sorted(sampled.items()):
        digest.update(name.encode())
        digest.update(values.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def backbone_digest(name_or_path: str) -> str:
    return sampled_backbone_digest(name_or_path)
