"""Where the sources of an index lie, kept beside its rows in the configuration of the dataset.

It is a hint for those who build an index again, and in no checksum: what cannot be read counts as
not recorded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import lance

from clara.index.errors import MemoryIndexError, failures_in
from clara.index.folders import local_path
from clara.index.snapshot import Snapshot

_PREFIX = "clara.source."
_TRIES = 20


def read_origins(path: str | os.PathLike[str]) -> dict[str, str]:
    """What `record_origins` wrote, by the name of the source.

    Raises:
        MemoryIndexError: the index cannot be read.
    """
    folder = local_path(path)
    with failures_in(folder, "reading the sources"):
        config: dict[str, str] = lance.dataset(folder).config()
    return {
        name.removeprefix(_PREFIX): value
        for name, value in config.items()
        if name.startswith(_PREFIX)
    }


def record_origins(path: str | os.PathLike[str], origins: Mapping[str, str]) -> None:
    """Record where sources lie, in one commit; none if that is recorded already.

    Args:
        origins: any text for each source, by its name. Sources that are not among them keep theirs.

    Raises:
        MemoryIndexError: the index cannot be written.
    """
    folder = local_path(path)
    for attempt in range(_TRIES):
        known = read_origins(folder)
        changed: dict[str, str | None] = {
            _PREFIX + name: text for name, text in origins.items() if known.get(name) != text
        }
        if not changed:
            return
        try:
            with failures_in(folder, "recording the sources"):
                lance.dataset(folder).update_config(changed)
            Snapshot.latest(folder)  # which gives the version its checksums
            return
        except MemoryIndexError:  # perhaps another process recorded its own at this moment
            if attempt == _TRIES - 1:
                raise
