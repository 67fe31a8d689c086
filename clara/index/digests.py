"""Checksums of what an index stores: blake2b over fields, each with its length in front."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

DIGEST_BYTES = 16

_LENGTH = struct.Struct("<q")
_ABSENT = _LENGTH.pack(-1)


def digest(label: bytes, *fields: Any) -> bytes:
    """Of bytes, contiguous arrays and None, personalised with the label."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES, person=label)
    for field in fields:
        if field is None:
            state.update(_ABSENT)
        else:
            view = memoryview(field)
            state.update(_LENGTH.pack(view.nbytes))
            state.update(view)
    return state.digest()


def number(value: int) -> bytes:
    """An integer as a field: 8 bytes, little-endian."""
    return _LENGTH.pack(value)
