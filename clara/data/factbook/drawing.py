"""Draw from lists in a way that depends on names alone.

The choice is the same in every process, on every machine and with every version of Python. What is
drawn for one name stays the same if others are added.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


def drawn(items: Iterable[T], count: int | None, *names: str) -> list[T]:
    """Draw `count` of the items in random order, all where there are fewer or `count` is None.

    Args:
        items: each is told from the others by its `str`.
        names: what the draw is for. Other names give another draw.
    """
    start = blake2b("\0".join(names).encode() + b"\0\0", digest_size=8)

    def place(item: T) -> bytes:
        hashed = start.copy()
        hashed.update(str(item).encode())
        return hashed.digest()

    return sorted(items, key=place)[:count]
