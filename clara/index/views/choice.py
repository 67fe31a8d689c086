"""Where the views of an index lie, and which are made and removed when."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from clara.index.contents import Contents
from clara.index.gate import let_go, try_lock
from clara.index.snapshot import Snapshot
from clara.index.views.building import build_view
from clara.index.views.earlier import Earlier
from clara.index.views.layout import FORMAT, Source, ViewError
from clara.index.views.mapped import View
from clara.index.views.rule import ViewRule

VIEWS_FROM_BYTES = 1 << 28
"""Of the vectors that documents are ranked by, from which on a search makes a view by itself."""

_NAME = re.compile(r"([0-9a-f]{16})-(\d{1,20})-([0-9a-f]{16})\.view\d+")
_OF_STATE = 16  # characters of `Snapshot.state` in a name
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")  # as `clara.files.writing` names them
_ABANDONED = 3600.0  # seconds without a change, after which nobody writes a file any more
_PATIENCE = 600.0  # seconds
_PAUSE = 0.05


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
    name = f"{_short(source.identity)}-{source.version}-{source.manifest[:_OF_STATE]}.view{FORMAT}"
    return os.path.join(folder, name)


def make_view(
    contents: Contents,
    rule: ViewRule,
    on_progress: Callable[[int], None] | None = None,
    *,
    anew: bool = False,
) -> View:
    """Write a view, open it, and remove those of earlier versions.

    One process at a time writes to a folder. Who had to wait takes the view that is there then.

    Args:
        anew: whoever did not have to wait writes it even if there is one.

    Raises:
        OSError: it cannot be written.
        MemoryIndexError: a document is damaged.
    """
    index = contents.snapshot.path
    folder, alone = rule.folder_of(index), rule.folder is None
    source = source_of(contents.snapshot, contents)
    target = view_path(folder, source)
    if alone:
        with suppress(FileExistsError):
            os.mkdir(folder)  # and no more: an index that was removed does not come back
        mode = 0o400 | os.stat(index).st_mode & 0o444  # who may read the index
    else:
        os.makedirs(folder, exist_ok=True)
        mode = 0o400  # the index may lie where others cannot look
    with _turn(folder) as waited:
        made = _opened(target, source) if waited or not anew else None
        if made is None:
            told = _Told(on_progress)
            try:
                earlier = _earlier(folder, source, contents)
                build_view(contents, source, target, told, mode=mode, earlier=earlier)
            except ViewError:  # the earlier view is damaged
                told.begin_again()
                build_view(contents, source, target, told, mode=mode)
            made = View.open(target, source)
    remove_views(folder, source.identity, before=source.version, alone=alone)
    return made


class _Told:
    """Progress of a view that may be begun again: each row is told of once."""

    def __init__(self, on_progress: Callable[[int], None] | None) -> None:
        self._on_progress = on_progress
        self._done = self._told = 0

    def __call__(self, rows: int) -> None:
        self._done += rows
        if self._on_progress is not None and self._done > self._told:
            self._on_progress(self._done - self._told)
            self._told = self._done

    def begin_again(self) -> None:
        self._done = 0


@contextmanager
def _turn(folder: str) -> Iterator[bool]:
    """Wait until no other process writes a view to a folder, but no longer than some minutes.

    Yields:
        Whether there was one.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        begin, waited = time.monotonic(), False
        while not try_lock(handle) and time.monotonic() - begin < _PATIENCE:
            waited = True
            time.sleep(_PAUSE)
        yield waited
    finally:
        let_go(handle)


def _earlier(folder: str, source: Source, contents: Contents) -> Earlier | None:
    """The latest view in a folder whose rows are the first ones of a version.

    Not that of the version itself: who asks for it again wants the rows read again.
    """
    beginnings = contents.snapshot.beginnings
    states = {state[:_OF_STATE]: state for state in beginnings}
    names = [found for name in os.listdir(folder) if (found := _NAME.fullmatch(name))]
    for found in sorted(names, key=lambda found: -int(found[2])):
        state = states.get(found[3])
        if state is None or int(found[2]) == source.version:
            continue
        each = replace(source, version=int(found[2]), manifest=state)
        with suppress(OSError, ViewError):
            view = View.open(os.path.join(folder, found[0]), each, exactly=False)
            if (earlier := Earlier.of(view, beginnings[state], contents)) is not None:
                return earlier
    return None


def _opened(target: str, source: Source) -> View | None:
    try:
        return View.open(target, source)
    except (FileNotFoundError, ViewError):
        return None


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
