"""Checksums of what an index stores: blake2b over fields, each with its length in front."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

DIGEST_BYTES = 16

ABSENT = struct.pack("<q", -1)
"""What stands in place of an absent field."""

_LENGTH = struct.Struct("<q")
_SHORT = tuple(_LENGTH.pack(size) for size in range(4096))
_JOINED = 1 << 17  # bytes that are copied to be hashed in one call


def digest(label: bytes, *fields: Any) -> bytes:
    """The digest of bytes, contiguous arrays and None, personalised with the label."""
    parts: list[Any] = []
    total = 0
    for field in fields:
        if field is None:
            parts.append(ABSENT)
            continue
        size = len(field) if type(field) is bytes else memoryview(field).nbytes
        parts += (length(size), field)
        total += size
    if total <= _JOINED:
        return joined_digest(label, parts)
    state = hashlib.blake2b(digest_size=DIGEST_BYTES, person=label)
    for part in parts:
        state.update(part)
    return state.digest()


def joined_digest(label: bytes, parts: Iterable[Any]) -> bytes:
    """The digest of fields that have their lengths in front already."""
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES, person=label).digest()


def length(size: int) -> bytes:
    """What stands before a field of so many bytes."""
    return _SHORT[size] if size < len(_SHORT) else _LENGTH.pack(size)


def number(value: int) -> bytes:
    """An integer as a field: 8 bytes, little-endian."""
    return _LENGTH.pack(value)
