"""Digests of files that were read earlier, kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.files.writing import write_text

_FORMAT = 1
_SETTLED = 2_000_000_000
"""Nanoseconds. File systems keep times as coarse as two seconds: a file that was written so short
a time ago may be written again and keep its time."""

_State = list[list[Any]]
_NOT_THERE = (OSError, RuntimeError)  # RuntimeError: the user has no home folder


def cache_folder() -> Path:
    """Return the folder for converted backbones and digests.

    `$CLARA_CACHE`, or `clara` in the user's cache.

    Raises:
        RuntimeError: neither is set and the user has no home folder.
    """
    root = os.environ.get("CLARA_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara"


def cached(source: Path, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """Return the result of `compute`, which runs only if one of the files may have changed.

    A file may have changed if its resolved path, size, modification time or inode differs, or if
    it was written so recently that a second change would leave no trace.

    Args:
        source: name of the digested thing; the cache has one entry for it.
        files: the files that `compute` reads.
        compute: returns 64 hexadecimal digits.

    Raises:
        OSError: a file is not there.
    """
    before = _state(files)
    kept = _find(source, before)
    if kept is not None:
        return kept
    settled = _settled(before)
    digest = compute()
    if settled:
        _keep(source, before, digest)
    return digest


def _state(files: Sequence[Path]) -> _State:
    """Resolved path, size, modification time and inode of each file."""
    found = []
    for file in files:
        file = file.resolve(strict=True)
        entry = file.stat()
        found.append([str(file), entry.st_size, entry.st_mtime_ns, entry.st_ino])
    return found


def _settled(files: _State) -> bool:
    """Whether any later change of the files will change their state."""
    now = time.time_ns()  # the clock of a file server may be ahead
    return all(abs(now - modified) >= _SETTLED for _, _, modified, _ in files)


def _find(source: Path, files: _State) -> str | None:
    """The digest that was kept for these files; a damaged cache counts as an empty one."""
    try:
        kept = json.loads(_entry(source).read_text(encoding="utf-8"))
        digest = kept["digest"]
        if (
            kept["format"] == _FORMAT
            and kept["files"] == files
            and re.fullmatch("[0-9a-f]{64}", digest)
        ):
            return str(digest)
    except (*_NOT_THERE, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(source: Path, files: _State, digest: str) -> None:
    """Keep the digest, unless the files changed since they had this state.

    A cache that cannot be written is no error.
    """
    with suppress(*_NOT_THERE):
        if _state([Path(file) for file, *_ in files]) != files:
            return
        target = _entry(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = {"format": _FORMAT, "files": files, "digest": digest}
        write_text(target, json.dumps(kept), private=True)
        _forget_what_is_gone(target.parent)


def _entry(source: Path) -> Path:
    name = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]
    return cache_folder() / "digests" / f"{name}.json"


def _forget_what_is_gone(entries: Path) -> None:
    """Drop the entries of what was deleted."""
    for entry in entries.glob("*.json"):
        try:
            files = json.loads(entry.read_text(encoding="utf-8"))["files"]
            gone = not Path(files[0][0]).exists()
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
        if gone:
            entry.unlink(missing_ok=True)
