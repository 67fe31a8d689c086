"""Digests of a backbone's weights, which identify the backbone in a model's fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from clara.backbone import digest_cache
from clara.backbone.body_weights import body_names
from clara.backbone.files import BackboneError, resolve_backbone, weight_files
from clara.backbone.weight_hashing import hash_tensors, stored_tensors
from clara.errors import reason
from clara.terminal.progress import byte_progress

_FORMAT = b"clara backbone digest 1"
_WORTH_A_BAR = 1 << 28  # bytes; less is read in the blink of an eye


def backbone_digest(name_or_path: str) -> str:
    """SHA-256 over every weight that memory depends on; 64 hexadecimal digits.

    It is the same for the same weights, however they are stored: in one file or in shards, as
    float32, bfloat16 or float16 (values are rounded to bfloat16), with or without an output
    head, tied or not, and with buffers that the model does not read. It is read from the files, so
    it does not depend on how the backbone is quantized in memory. It does not cover the
    configuration.

    The files are read once and the digest is kept in the cache folder, as long as the files have
    the same path, size, modification time and inode.

    Raises:
        BackboneError: not found, or without safetensors files.
    """
    source = Path(resolve_backbone(name_or_path))
    try:
        files = weight_files(source)
        read = [source / "config.json", *files]
        return digest_cache.cached(source, read, lambda: _computed(source, files))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _unreadable(name_or_path, error) from error


def _computed(source: Path, files: list[Path]) -> str:
    stored = stored_tensors(files)
    called = body_names(source, stored)
    tensors = {name: stored[there] for name, there in called.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with byte_progress("fingerprint", total, visible=total >= _WORTH_A_BAR) as bar:
        hashes = hash_tensors(list(tensors.values()), bar.advance)
    digest = hashlib.sha256(_FORMAT)
    for name, each in sorted(zip(tensors, hashes, strict=True)):
        label = name.encode()
        digest.update(len(label).to_bytes(8, "little") + label + each)
    return digest.hexdigest()


def sampled_backbone_digest(name_or_path: str) -> str:
    """The digest that earlier versions put into fingerprints: of a sample of every stored weight.

    It reads the first values of each tensor. Use it only to recognise what earlier versions
    wrote: it does not see most changes of the weights, and it depends on how they are stored.

    Raises:
        BackboneError: not found, or without safetensors files.
    """
    source = Path(resolve_backbone(name_or_path))
    sampled = {}
    try:
        for file in weight_files(source, shards_first=True):
            with safe_open(file, framework="pt") as weights:
                for name in list(weights.keys()):
                    part = weights.get_slice(name)
                    dimensions = len(part.get_shape())
                    if dimensions == 0:
                        sampled[name] = weights.get_tensor(name).reshape(1)
                    else:
                        sampled[name] = part[:1, :256] if dimensions > 1 else part[:256]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(name_or_path, error) from error
    digest = hashlib.sha256()
    for name, values in sorted(sampled.items()):
        digest.update(name.encode())
        digest.update(values.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unreadable(name_or_path: str, error: Exception) -> BackboneError:
    return BackboneError(f"cannot read weights of {name_or_path!r}: {reason(error)}")
