"""Hashing tensors of safetensors files: every value once, little memory, all cores."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Any

import torch
from safetensors import safe_open

_CHUNK = 1 << 22
"""Values that are hashed together. The hash of a tensor depends on it."""
_ROUNDED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
_THREADS = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where the values of a tensor are.

    Attributes:
        dtype: as safetensors spells it, such as "BF16".
        start: its first byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors of safetensors files by name; of two with one name, the last.

    Raises:
        SafetensorError, OSError, ValueError: a file is damaged or cannot be read.
    """
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt"):
            pass  # checks that the header is sound and that the file is as long as it says
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            tensors[name] = StoredTensor(
                file, entry["dtype"], tuple(entry["shape"]), 8 + length + first, last - first
            )
    return tensors


def hash_tensors(
    tensors: Sequence[StoredTensor], on_progress: Callable[[int], None] = lambda nbytes: None
) -> list[bytes]:
    """A SHA-256 of shape and values of each tensor, with floats rounded to bfloat16.

    Each value is read once, in the order of the files. A few threads read and hash chunks of 4 Mi
    values side by side, and need one buffer each.

    Args:
        on_progress: called in this thread with the number of bytes done since the last call.

    Raises:
        OSError: a file cannot be read, or became shorter meanwhile.
    """
    order = sorted(range(len(tensors)), key=lambda i: (tensors[i].file, tensors[i].start))
    chunks = [chunk for i in order for chunk in _chunks(tensors[i])]
    states = [hashlib.sha256() for _ in tensors]
    for state, tensor in zip(states, tensors, strict=True):
        state.update(json.dumps([_kind(tensor.dtype), *tensor.shape]).encode())
    workers = min(_THREADS, os.cpu_count() or 1)
    buffers = local()
    with ThreadPoolExecutor(workers) as pool:
        try:
            results = pool.map(lambda chunk: _hash_chunk(chunk, buffers), chunks)
            for i in order:
                for chunk in _chunks(tensors[i]):
                    states[i].update(next(results))
                    on_progress(chunk.nbytes)
        finally:
            pool.shutdown(cancel_futures=True)
    return [state.digest() for state in states]


def _kind(dtype: str) -> str:
    return "BF16" if dtype in _ROUNDED else dtype


def _chunks(tensor: StoredTensor) -> Iterator[StoredTensor]:
    """Pieces of `_CHUNK` values, the last one shorter."""
    values = math.prod(tensor.shape)
    if not values:
        return
    for first in range(0, values, _CHUNK):
        count = min(_CHUNK, values - first)
        # In whole bytes also for types of less than a byte.
        start, stop = first * tensor.nbytes // values, (first + count) * tensor.nbytes // values
        yield StoredTensor(tensor.file, tensor.dtype, (count,), tensor.start + start, stop - start)


def _hash_chunk(chunk: StoredTensor, buffers: local) -> bytes:
    if getattr(buffers, "buffer", None) is None or len(buffers.buffer) < chunk.nbytes:
        buffers.buffer = bytearray(chunk.nbytes)
    view = memoryview(buffers.buffer)[: chunk.nbytes]
    with chunk.file.open("rb", buffering=0) as stream:
        stream.seek(chunk.start)
        done = 0
        while done < chunk.nbytes:
            count = stream.readinto(view[done:])
            if not count:
                raise OSError(f"{chunk.file.name} ends before its tensors do")
            done += count
    dtype = _ROUNDED.get(chunk.dtype)
    if dtype is None:
        return hashlib.sha256(view).digest()
    rounded = torch.frombuffer(view, dtype=dtype).to(torch.bfloat16)
    return hashlib.sha256(rounded.view(torch.uint8).numpy().data).digest()
