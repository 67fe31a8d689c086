"""Compressed documents on disk and exact search over them. Needs the package `pylance`."""

from clara.index.changing import Changed
from clara.index.checking import Damaged
from clara.index.details import Details
from clara.index.errors import DuplicateIdError, MemoryIndexError
from clara.index.hits import Hit
from clara.index.listing import Entry
from clara.index.memory_index import MemoryIndex
from clara.index.selection import Selection
from clara.index.texts import text_digest
from clara.index.upkeep import Compacted
from clara.index.verifying import Repaired
from clara.index.versions import Version
from clara.index.viewing import ViewFile
from clara.index.views.layout import ViewError

__all__ = [
    "Changed",
    "Compacted",
    "Damaged",
    "Details",
    "DuplicateIdError",
    "Entry",
    "Hit",
    "MemoryIndex",
    "MemoryIndexError",
    "Repaired",
    "Selection",
    "Version",
    "ViewError",
    "ViewFile",
    "text_digest",
]
