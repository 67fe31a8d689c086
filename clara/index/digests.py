"""Checksums of what an index stores: blake2b over fields, each with its length in front."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

DIGEST_BYTES = 16

_LENGTH = struct.Struct("<q")
_ABSENT = _LENGTH.pack(-1)


def digest(label: bytes, *fields: Any) -> bytes:
    """The digest of bytes, contiguous arrays and None, personalised with the label."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES, person=label)
    for field in fields:
        if field is None:
            state.update(_ABSENT)
        else:
            view = memoryview(field)
            state.update(_LENGTH.pack(view.nbytes))
            state.update(view)
    return state.digest()


def small_digest(label: bytes, fields: Sequence[bytes | None]) -> bytes:
    """The same as `digest` of short fields, in a third of the time."""
    parts = []
    for field in fields:
        parts += [_ABSENT] if field is None else [_LENGTH.pack(len(field)), field]
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES, person=label).digest()


def number(value: int) -> bytes:
    """An integer as a field: 8 bytes, little-endian."""
    return _LENGTH.pack(value)
