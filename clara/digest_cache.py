"""Digests of files that were read earlier, kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.backbone_files import cache_folder

_FORMAT = 1
_SETTLED = 2_000_000_000
"""Nanoseconds. File systems keep times as coarse as two seconds: a file that was written so short
a time ago may be written again and keep its time."""

State = list[list[Any]]


def state(files: Sequence[Path]) -> State:
    """Resolved path, size, modification time and inode of each file.

    Raises:
        OSError: one is not there.
    """
    found = []
    for file in files:
        file = file.resolve(strict=True)
        entry = file.stat()
        found.append([str(file), entry.st_size, entry.st_mtime_ns, entry.st_ino])
    return found


def settled(files: State) -> bool:
    """Whether any later change of the files will change their state."""
    now = time.time_ns()
    return not any(0 <= now - modified < _SETTLED for _, _, modified, _ in files)


def find(folder: Path, files: State) -> str | None:
    """The digest that was kept for these files; a damaged cache counts as an empty one."""
    try:
        kept = json.loads(_entry(folder).read_text(encoding="utf-8"))
        digest = kept["digest"]
        if (
            kept["format"] == _FORMAT
            and kept["files"] == files
            and re.fullmatch("[0-9a-f]{64}", digest)
        ):
            return str(digest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def keep(folder: Path, files: State, digest: str) -> None:
    """Keep the digest, unless the files changed meanwhile.

    A cache that cannot be written is no error.

    Args:
        files: their state before they were read, and `settled` then.
    """
    with suppress(OSError):
        if state([Path(file) for file, *_ in files]) != files:
            return
        target = _entry(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump({"format": _FORMAT, "files": files, "digest": digest}, stream)
            os.replace(scratch, target)
            _forget_what_is_gone(target.parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise


def _entry(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return cache_folder() / "digests" / f"{name}.json"


def _forget_what_is_gone(entries: Path) -> None:
    """Drop the entries of folders that were deleted."""
    for entry in entries.glob("*.json"):
        try:
            files = json.loads(entry.read_text(encoding="utf-8"))["files"]
            gone = not Path(files[0][0]).exists()
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
        if gone:
            entry.unlink(missing_ok=True)
