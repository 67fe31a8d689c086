"""Put another index in the place of one, in one commit: the index of another model, made beside it.

The other index is made in a folder within the first one, which Lance leaves alone. So its files are
on the same file system, and become those of the first index without being copied.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import lance

from clara.files.writing import replacing
from clara.index.catalog import Catalog
from clara.index.digests import digest, number
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.gate import FOLDER, let_go, try_lock
from clara.index.heads import Heads
from clara.index.snapshot import Snapshot

INDEX: Final = "index"
"""The folder of that other one, within `FOLDER`."""

_DATA = "data"
_WEEK = 7 * 24 * 3600.0  # seconds
_LOCK = "lock"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def states(snapshot: Snapshot) -> dict[str, bytes]:
    """What tells each document from what it was before it was last stored, in order.

    It covers ids, texts, titles, memory and details by their checksums, and the random number of
    the commit that stored it. Joining files changes nothing of it.

    Raises:
        MemoryIndexError: the names of a row are damaged.
    """
    found: list[bytes] = []

    def noted() -> Iterator[Heads]:
        for heads in snapshot.heads():
            found.extend(_row_states(heads))
            yield heads

    catalog = Catalog()
    catalog.extend(noted())
    positions = catalog.positions

    def state(rows: Sequence[int]) -> bytes:
        places = rows if positions is None else positions[list(rows)].tolist()
        return digest(b"clara.state", *(found[place] for place in places))

    return {name: state(catalog.rows_of(name)) for name in catalog.documents}


def document_ids(snapshot: Snapshot) -> list[str]:
    """Ids of documents in order.

    Raises:
        MemoryIndexError: the names of a row are damaged.
    """
    catalog = Catalog()
    catalog.extend(snapshot.heads())
    return list(catalog.documents)


def _row_states(heads: Heads) -> Iterator[bytes]:
    for row, name in enumerate(heads.ids):
        title, sequence = heads.titles[row], heads.sequences[row]
        yield digest(
            b"clara.row.state",
            name.encode(),
            heads.document_ids[row].encode(),
            None if title is None else title.encode(),
            number(heads.token_counts[row]),
            None if sequence is None else number(sequence),
            *(digests[row] for digests in heads.digests.values()),
        )


@contextmanager
def only_migration(path: str) -> Iterator[str]:
    """The folder of an index's migration, made if there is none, which no other process has.

    Raises:
        MemoryIndexError: another process has it, or it cannot be made.
    """
    folder = os.path.join(path, FOLDER)
    while True:
        with failures_in(path, "beginning the migration"):
            Path(folder).mkdir(exist_ok=True)
            try:
                handle = _lock_file(folder)
            except FileNotFoundError:  # removed meanwhile
                continue
        try:
            with failures_in(path, "beginning the migration"):
                free = try_lock(handle)
            if not free:
                raise MemoryIndexError(
                    f"{path}: another process is migrating it at this moment; wait until it ends"
                )
            if _is_lock_of(folder, handle):  # else removed before it was locked
                yield folder
                return
        finally:
            let_go(handle)


@contextmanager
def no_migration(path: str) -> Iterator[bool]:
    """Whether no process is migrating an index; if there is a half-done one, none goes on with it.

    Where its folder cannot be locked, one may be.
    """
    handle = None
    try:
        handle = _own_lock(os.path.join(path, FOLDER))
        free = handle is not None
    except FileNotFoundError:  # as a rule
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        if handle is not None:
            let_go(handle)


def _own_lock(folder: str) -> int | None:
    """The lock of a folder, which the caller lets go of; None if another process has it.

    Raises:
        OSError: there is no folder, or it cannot be locked.
    """
    handle = _lock_file(folder)
    own = False
    try:
        own = try_lock(handle) and _is_lock_of(folder, handle)
    finally:
        if not own:
            let_go(handle)
    return handle if own else None


def _lock_file(folder: str) -> int:
    """The file whose lock stands for a folder, opened: NFS locks only what is open for writing."""
    place = os.open(folder, _FOLDER_FLAGS)
    try:
        return os.open(_LOCK, _LOCK_FLAGS, 0o644, dir_fd=place)
    finally:
        os.close(place)


def _is_lock_of(folder: str, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(os.path.join(folder, _LOCK)))
    except FileNotFoundError:
        return False


def remove_folder(folder: str) -> None:
    """Remove the folder of a migration, of which the caller has the lock: that goes last."""
    for name in os.listdir(folder):
        if name != _LOCK:
            remove_any(os.path.join(folder, name))
    Path(folder, _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # another process may have begun in it
        os.rmdir(folder)


def remove_any(path: str) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def switch(old: Snapshot, new: Snapshot) -> bool:
    """Put all documents of another index in the place of those of one, in one commit.

    The versions before it stay: they can be opened and restored until they are cleaned up.

    Args:
        old: what was read of the index last.
        new: in its `FOLDER`, without deleted rows; it keeps its files.

    Returns:
        False if anything was committed to the index since `old`, and nothing was done.

    Raises:
        MemoryIndexError: the index cannot be written.
    """
    fragments = [fragment.metadata for fragment in new.fragments]
    files = [file.path for fragment in fragments for file in fragment.files]
    with failures_in(old.path, "putting the new files in place"):
        os.makedirs(os.path.join(old.path, _DATA), exist_ok=True)
        placed = [
            file
            for file in files
            if _put(os.path.join(new.path, _DATA, file), os.path.join(old.path, _DATA, file))
        ]
    with failures_in(old.path, "switching to the new files"):
        try:
            lance.LanceDataset.commit(
                old.path,
                lance.LanceOperation.Overwrite(new.header.schema, fragments),
                read_version=old.version,
                max_retries=0,  # which commits the next version or none
            )
        except Exception:
            latest = Snapshot.latest(old.path)
            if latest.identity != new.header.identity:  # else what failed came after the commit
                for file in placed:
                    with suppress(OSError):
                        os.remove(os.path.join(old.path, _DATA, file))
                if latest.version == old.version:
                    raise
                return False
    Snapshot.latest(old.path)  # which gives the version its checksums
    return True


def _put(file: str, place: str) -> bool:
    """Have a file in another folder, too: by a link, or as a copy where there are no links.

    Its time becomes now: Lance removes old files that belong to no version yet.

    Returns:
        False if it was there: an earlier version may have it.
    """
    os.utime(file)
    there = os.path.lexists(place)
    if os.path.isfile(place) and _is_same(file, place):
        os.utime(place)  # a copy, where the folder was copied
        return False
    try:
        os.link(file, place)
    except OSError:
        with replacing(place, sync=True) as copy:
            shutil.copyfile(file, copy)
    return not there


def _is_same(file: str, other: str) -> bool:
    return os.path.samefile(file, other) or filecmp.cmp(file, other, shallow=False)


def remove_migration(path: str, *, unfinished: bool) -> int:
    """Remove what a migration has left that is finished, or was not gone on with for a week.

    Nothing is removed while a process is seen to migrate the index, or if the lock cannot be asked
    for. Where there are no locks, none is seen.

    Args:
        path: of an index.
        unfinished: also one that was gone on with later.

    Returns:
        Bytes that were freed.

    Raises:
        MemoryIndexError: a file cannot be removed.
    """
    folder = os.path.join(path, FOLDER)
    try:
        handle = _own_lock(folder)
    except OSError:  # there is none, or it cannot be locked
        return 0
    if handle is None:
        return 0
    try:
        if not (unfinished or _is_finished(path) or time.time() - _touched(folder) > _WEEK):
            return 0
        freed = _bytes_of_own(folder)
        with failures_in(path, "removing a migration"):
            remove_folder(folder)
        return freed
    finally:
        let_go(handle)


def _is_finished(path: str) -> bool:
    """Whether the index is the one that was made in its folder."""
    with suppress(MemoryIndexError):
        made = Snapshot.latest(os.path.join(path, FOLDER, INDEX))
        return made.identity == Snapshot.latest(path).identity
    return False


def _touched(folder: str) -> float:
    """When a file of a folder was last written."""
    times = [os.stat(folder).st_mtime]
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                times.append(os.lstat(os.path.join(place, name)).st_mtime)
    return max(times)


def _bytes_of_own(folder: str) -> int:
    """Sizes of the files in a folder that are in no other folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            total += found.st_size if found.st_nlink == 1 else 0
    return total
