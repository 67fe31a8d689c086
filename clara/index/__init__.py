"""Compressed documents on disk and exact search over them. Needs the package `pylance`."""

from clara.index.errors import MemoryIndexError
from clara.index.hits import Hit
from clara.index.memory_index import MemoryIndex

__all__ = ["Hit", "MemoryIndex", "MemoryIndexError"]
