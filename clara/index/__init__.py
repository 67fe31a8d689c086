"""Compressed documents on disk and exact search over them. Needs the package `pylance`."""

from clara.index.changing import Changed
from clara.index.details import Details
from clara.index.errors import DuplicateIdError, MemoryIndexError
from clara.index.hits import Hit
from clara.index.listing import Entry
from clara.index.memory_index import MemoryIndex
from clara.index.texts import text_digest
from clara.index.upkeep import Compacted
from clara.index.versions import Version

__all__ = [
    "Changed",
    "Compacted",
    "Details",
    "DuplicateIdError",
    "Entry",
    "Hit",
    "MemoryIndex",
    "MemoryIndexError",
    "Version",
    "text_digest",
]
