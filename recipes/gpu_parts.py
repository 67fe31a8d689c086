"""Files in parts that fit through a narrow door, verified and joined on the other side.

A backbone from a GGUF file travels with its blocks of 4 and 8 bits as they are, and is dequantized
where it is used: without the package `gguf`, with the same values bit for bit.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clara.errors import ClaraError
from clara.files.digest import sha256_of
from clara.files.writing import replace_folder, write_text

if TYPE_CHECKING:  # a damaged part is found before torch is imported, which takes seconds
    import numpy
    from torch import Tensor

MIB = 1 << 20
PART = 24 * MIB
"""Bytes of a part, at most."""
CALL = 64 * MIB
"""Bytes that travel in one call, at most, the working tree among them."""
_SPARE = MIB
MANIFEST = "manifest.json"
_ARCHIVE = "whole.tar.gz"
WEIGHTS = "model.safetensors"
PACKED = "packed.safetensors"


class PartsError(ClaraError, ValueError):
    """Parts that cannot be made, or are not what was made."""


# Parts


class Plan(NamedTuple):
    """How an archive travels.

    Attributes:
        sizes: bytes of each part.
        per_call: parts that travel in one call.
    """

    sizes: list[int]
    per_call: int

    @property
    def calls(self) -> int:
        return -(-len(self.sizes) // self.per_call)


def plan(total: int, beside: int, part: int = PART, call: int = CALL) -> Plan:
    """Parts of equal size for as few calls as possible.

    Args:
        total: bytes of the archive; at least one.
        beside: bytes that travel in every call besides parts.

    Raises:
        PartsError: nothing fits beside them.
    """
    room = call - beside - min(_SPARE, call // 64)
    if room <= 0:
        raise PartsError(
            f"the working tree alone has {beside / MIB:.1f} MiB; a call takes {call / MIB:.0f} MiB"
        )
    calls = -(-total // room)
    per_call = -(-total // (calls * part))
    size = -(-total // (calls * per_call))
    return Plan([min(size, total - at) for at in range(0, total, size)], per_call)


def write_parts(
    sources: Mapping[str, Path],
    folder: Path,
    record: Mapping[str, Any],
    beside: int = 0,
    *,
    part: int = PART,
    call: int = CALL,
) -> Plan:
    """Write files as parts with a manifest of their SHA-256 sums; replaces those of `folder`.

    The same files give the same parts.

    Args:
        sources: files by the paths that they have once they are joined.
        record: goes into the manifest.
        beside, part, call: see `plan`.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    archive = unfinished / _ARCHIVE
    _write_archive(sources, archive)
    planned = plan(archive.stat().st_size, beside, part, call)
    parts = []
    with archive.open("rb") as stream:
        for number, size in enumerate(planned.sizes):
            content, name = stream.read(size), f"part-{number:02}"
            (unfinished / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            parts.append({"name": name, "bytes": size, "sha256": digest})
    archive.unlink()
    manifest = {**record, "parts": parts}
    write_text(unfinished / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    replace_folder(unfinished, folder, folder.with_name(f".{folder.name}.replaced"))
    return planned


def _write_archive(sources: Mapping[str, Path], target: Path) -> None:
    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name, path in sorted(sources.items()):
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)


def join_parts(folder: Path, target: Path) -> dict[str, Any]:
    """Verify parts, and unpack what they hold into `target`, which is made anew.

    Returns:
        The manifest.

    Raises:
        PartsError: a part is missing or damaged; names it. `target` is as it was.
    """
    manifest = _read_manifest(folder)
    parts = manifest["parts"]
    for part in parts:
        _check(folder / part["name"], part, len(parts))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    archive = target / _ARCHIVE
    with archive.open("wb") as joined:
        for part in parts:
            joined.write((folder / part["name"]).read_bytes())
    with tarfile.open(archive, "r:gz") as packed:
        packed.extractall(target, filter="data")
    archive.unlink()
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        usable = all({"name", "bytes", "sha256"} <= part.keys() for part in manifest["parts"])
    except OSError as error:
        raise PartsError(f"{file} is missing: make gpu-train-parts writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PartsError(f"{file} is damaged: {error}") from error
    if not usable:
        raise PartsError(f"{file} is damaged: a part has no name, size or sum")
    return manifest


def _check(file: Path, part: Mapping[str, Any], count: int) -> None:
    if not file.is_file():
        raise PartsError(f"{file} is missing; there are {count} parts")
    found = file.stat().st_size
    if found != part["bytes"]:
        raise PartsError(f"{file} is damaged: it has {found} bytes instead of {part['bytes']}")
    if sha256_of(file) != part["sha256"]:
        raise PartsError(f"{file} is damaged: its SHA-256 is not the manifest's")


# Weights


def pack_weights(gguf_file: Path, backbone: Path, target: Path) -> int:
    """Write a backbone's weights with the GGUF file's blocks wherever these give the same values.

    Args:
        gguf_file: of types Q4_1 and Q8_0; weights of other types travel in float32.
        backbone: the folder that the file was converted to.
        target: safetensors file. A packed weight is uint8 `[rows, bytes of a row]`; the file's
            metadata has its type.

    Returns:
        The number of packed weights.
    """
    import torch
    from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
    from safetensors.torch import load_file, save_file

    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    blocks = {tensor.name: tensor for tensor in GGUFReader(gguf_file).tensors}
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    stored, types = load_file(backbone / WEIGHTS), {}
    for name, value in stored.items():
        there = blocks.get(names.get_name(name, try_suffixes=(".weight", ".bias")) or "")
        if there is None or there.tensor_type.name not in _DECODERS:
            continue
        rows = there.data
        if ".attn_q." in there.name:
            rows = _halves_apart(rows, heads)
        elif ".attn_k." in there.name:
            rows = _halves_apart(rows, key_heads)
        packed, kind = torch.from_numpy(rows.copy()), there.tensor_type.name
        if torch.equal(_DECODERS[kind](packed), value.float()):
            stored[name], types[name] = packed, kind
    save_file(stored, target, metadata={"format": "pt", **types})
    return len(types)


def unpack_weights(packed: Path, target: Path) -> None:
    """Write the weights that `pack_weights` read; those that were packed are float32."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(packed, framework="pt") as file:
        types = file.metadata()
        weights = {name: file.get_tensor(name) for name in list(file.keys())}
    for name in types.keys() & weights.keys():
        weights[name] = _DECODERS[types[name]](weights[name])
    save_file(weights, target, metadata={"format": "pt"})


def _halves_apart(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of queries and keys in transformers' order.

    llama.cpp has the two halves that a rotation mixes row by row in turns, transformers one after
    the other.
    """
    turns = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return turns.swapaxes(1, 2).reshape(rows.shape)


def _q4_1(rows: Tensor) -> Tensor:
    """Blocks of 32 values as float16 scale, float16 minimum and 4 bits each: low halves first."""
    import torch

    blocks = rows.reshape(rows.shape[0], -1, 20)
    scale, least = blocks[..., :4].contiguous().view(torch.float16).float().split(1, dim=-1)
    codes = blocks[..., 4:]
    values = torch.cat([codes & 15, codes >> 4], dim=-1).float()
    return (scale * values + least).reshape(rows.shape[0], -1)


def _q8_0(rows: Tensor) -> Tensor:
    """Blocks of 32 values as float16 scale and int8 each."""
    import torch

    blocks = rows.reshape(rows.shape[0], -1, 34)
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    codes = blocks[..., 2:].contiguous().view(torch.int8)
    return (scale * codes.float()).reshape(rows.shape[0], -1)


_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {"Q4_1": _q4_1, "Q8_0": _q8_0}
"""Types of GGUF's blocks, as in ggml's `ggml-quants.c`; the order of operations is `gguf`'s."""
