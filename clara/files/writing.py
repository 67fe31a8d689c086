"""Writing files and folders so that nobody ever sees half of one.

What is new is written beside its place under a name of its own, and takes its place by one rename.
A process that is killed before that leaves what was there before, and perhaps a file or folder
whose name begins with a dot and ends with ".tmp".
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

Place = str | os.PathLike[str]


@contextmanager
def replacing(path: Place, *, sync: bool = False, private: bool = False) -> Iterator[Path]:
    """A new empty file beside `path`, which replaces `path` once the block is left without error.

    An error in the block removes it. A symbolic link at `path` is replaced, not what it points to.

    Args:
        sync: have the content on disk before the file gets its name, so that a machine that
            loses power keeps the old content or the new one.
        private: nobody but the user may read the file.
    """
    target, unfinished = _places(path)
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
        yield unfinished
        if sync:
            _sync(unfinished)
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_text(path: Place, text: str, *, sync: bool = False, private: bool = False) -> None:
    """Write a text in UTF-8; `path` holds all of it or what it held before, see `replacing`."""
    with replacing(path, sync=sync, private=private) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def new_files(folder: Place) -> Iterator[Path]:
    """A new empty folder, whose files move into `folder` once the block is left without error.

    They replace files of the same names; others stay. An error in the block leaves all as it was.

    Args:
        folder: exists.
    """
    target = Path(folder)
    with TemporaryDirectory(prefix=".", suffix=".tmp", dir=target) as made:
        yield Path(made)
        for file in sorted(Path(made).iterdir()):
            os.replace(file, target / file.name)


@contextmanager
def new_folder(path: Place, *, private: bool = False) -> Iterator[Path]:
    """A new empty folder beside `path`, which becomes `path` once the block is left without error.

    Parents that do not exist are made. An error in the block removes the folder and them.

    Args:
        path: nothing, or an empty folder.
        private: nobody but the user may look into the folder.

    Raises:
        OSError: something else is at `path` at the end, perhaps since another process made it.
    """
    target, unfinished = _places(path)
    with _made(unfinished, 0o700 if private else 0o777):
        yield unfinished
        os.rename(unfinished, target)


@contextmanager
def replacing_folder(path: Place) -> Iterator[Path]:
    """A new empty folder beside `path`, which takes its place once the block is left without error.

    Its content is on disk by then. Parents that do not exist are made. An error in the block
    removes the new folder and them. What a process that was killed in `replace_folder` left of the
    old one at `aside_of(path)` is put back first.

    Args:
        path: nothing, or a folder that has to give way.

    Raises:
        OSError: `path` is a link or a file, or cannot be replaced; it is as it was.
    """
    target, unfinished = _places(path)
    aside = aside_of(target)
    if os.path.lexists(aside):
        put_back(aside, target, unfinished)
    with _made(unfinished):
        yield unfinished
        replace_folder(unfinished, target, aside)


def aside_of(path: Place) -> Path:
    """Where `replacing_folder` puts the old folder while the new one takes its place."""
    target = Path(path).absolute()
    return target.with_name(f".replaced-{target.name}")


@contextmanager
def _made(folder: Path, mode: int = 0o777) -> Iterator[None]:
    """Make a folder and its parents; an error in the block removes them."""
    parents = [parent for parent in folder.parents if not os.path.lexists(parent)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=mode)
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in parents:
            with suppress(OSError):  # not made, or in use by another process
                parent.rmdir()
        raise


def replace_folder(unfinished: Place, path: Place, aside: Place) -> None:
    """Put a finished folder in the place of another one, or of nothing, with its content on disk.

    No system call replaces a folder that is not empty: it is moved aside, and removed when the new
    one is in its place. A process that is killed may leave

    - nothing at `path`, and the old folder at `aside`, whole: `put_back` returns it;
    - the new folder at `path`, and the old one at `aside`, whole, or at `unfinished`, perhaps only
      in part.

    Args:
        unfinished: the new folder. Several processes may have written to it.
        path: a folder, or nothing.
        aside: a free place for the old folder. All three are on the same file system.

    Raises:
        OSError: `path` is a link or a file, or cannot be replaced; it is as it was.
    """
    new, target, old = (Path(place).absolute() for place in (unfinished, path, aside))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(target))
    _sync_folder(new)
    if not target.exists():
        os.rename(new, target)
        return
    try:
        os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if not target.exists():
            os.rename(old, target)
        raise
    # What has the name `aside` is always whole: only under the other name is it taken apart.
    os.rename(old, new)
    shutil.rmtree(new, ignore_errors=True)


def put_back(aside: Place, path: Place, unfinished: Place) -> None:
    """Finish what a process left that was killed in `replace_folder`, of which see the arguments.

    The old folder returns to `path` if nothing is there; else it is removed.
    """
    old, target, new = (Path(place).absolute() for place in (aside, path, unfinished))
    if not os.path.lexists(target):
        os.rename(old, target)
        return
    shutil.rmtree(new, ignore_errors=True)
    os.rename(old, new)
    shutil.rmtree(new, ignore_errors=True)


def _places(path: Place) -> tuple[Path, Path]:
    """A path made absolute, and a free one in the same folder."""
    target = Path(path).absolute()
    return target, target.with_name(f".{uuid.uuid4().hex}.tmp")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)
