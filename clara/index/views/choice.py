"""Where the views of an index lie, and which are made and removed when."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress

from clara.index.contents import Contents
from clara.index.snapshot import Snapshot
from clara.index.views.building import build_view
from clara.index.views.layout import FORMAT, Source
from clara.index.views.mapped import View
from clara.index.views.rule import ViewRule

VIEWS_FROM_BYTES = 1 << 28
"""Of the vectors that documents are ranked by, from which on a search makes a view by itself."""

_NAME = re.compile(r"([0-9a-f]{16})-(\d{1,20})-[0-9a-f]{16}\.view\d+")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")  # as `clara.files.writing` names them
_ABANDONED = 3600.0  # seconds without a change, after which nobody writes a file any more


def source_of(snapshot: Snapshot, contents: Contents | None = None) -> Source:
    """What a view of a version is of.

    Args:
        contents: of the snapshot; without them it is not said how many rows there are, and where.

    Raises:
        MemoryIndexError: the version cannot be read.
    """
    header = snapshot.header
    return Source(
        identity=snapshot.identity,
        version=snapshot.version,
        manifest=snapshot.state,
        fingerprint=header.fingerprint,
        rows=0 if contents is None else contents.count,
        width=header.vector_width,
        dtype=str(header.vector_dtype).removeprefix("torch."),
        moved=contents is not None and contents.positions is not None,
    )


def view_path(folder: str, source: Source) -> str:
    """Where the view of a version lies: each has a name of its own."""
    name = f"{_short(source.identity)}-{source.version}-{source.manifest[:16]}.view{FORMAT}"
    return os.path.join(folder, name)


def make_view(
    contents: Contents, rule: ViewRule, on_progress: Callable[[int], None] | None = None
) -> View:
    """Write a view, open it, and remove those of earlier versions.

    Raises:
        OSError: it cannot be written.
        MemoryIndexError: a document is damaged.
    """
    folder = rule.folder_of(contents.snapshot.path)
    source = source_of(contents.snapshot, contents)
    target = view_path(folder, source)
    build_view(contents, source, target, on_progress)
    made = View.open(target, source)
    remove_views(folder, source.identity, before=source.version, alone=rule.folder is None)
    return made


def remove_views(
    folder: str, identity: str, *, before: int | None = None, alone: bool = True
) -> int:
    """Remove views of an index; how many bytes they had. Who has one mapped keeps reading it.

    Args:
        before: only those of versions before this one.
        alone: only this index has views in the folder. Those of others, whose place it took, are
            removed, too, and files that a killed process has left.
    """
    freed = 0
    if os.path.islink(folder):
        return 0
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for name in names:
        place = os.path.join(folder, name)
        found = _NAME.fullmatch(name)
        with suppress(OSError):
            size = os.lstat(place)
            if found is not None:
                own = found[1] == _short(identity)
                gone = before is None or int(found[2]) < before or not own
                gone = gone and (own or alone)
            else:
                abandoned = time.time() - size.st_mtime > _ABANDONED
                gone = _UNFINISHED.fullmatch(name) is not None and abandoned
            if gone:
                os.remove(place)
                freed += size.st_size
    return freed


def _short(identity: str) -> str:
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
