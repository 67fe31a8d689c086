"""Checksums of the files in which Lance says what a version holds.

Rows have checksums of their own. But which files and rows belong to a version is in its manifest
and in lists of deleted rows, of which Lance keeps no checksum either: a changed byte there could
hide a document or bring back one that was deleted. So each such file has a checksum in the folder
`_checksums`, in a file of the same name. Who commits writes it; where that process was killed
first, or another program committed, who opens the version first does. Files are never changed, so
a checksum that is there stays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.files.writing import write_text
from clara.index.digests import DIGEST_BYTES
from clara.index.errors import MemoryIndexError

_FOLDER = "_checksums"
VERSIONS = "_versions"
DELETIONS = "_deletions"
MANIFEST = ".manifest"
HIGHEST = 2**64 - 1  # Lance names version n either n or this minus n
_MOST_KNOWN = 1 << 14

_known: dict[str, tuple[int, int, int]] = {}
"""Files that were compared, with what shows that they are the same still; read no second time."""


def require_sealed(path: str, version: int, fragments: Iterable[Any]) -> None:
    """Compare the files of a version with their checksums, and write those that are missing.

    Args:
        path: folder of the index.
        fragments: the parts of the version, as Lance has them.

    Raises:
        MemoryIndexError: a file is not what was written; names it.
    """
    for folder, name in (*_manifests(path, version), *_deletions(fragments)):
        with suppress(FileNotFoundError):  # the version was removed meanwhile, or Lance will say so
            _compare(path, folder, name)


def require_manifest(path: str, version: int) -> None:
    """Compare the manifest of a version with its checksum, if it has one, before Lance reads it.

    Lance does not name the manifest that it cannot read, and some damage ends the process.

    Raises:
        MemoryIndexError: the manifest is not what was written; names it.
    """
    for folder, name in _manifests(path, version):
        if os.path.exists(os.path.join(path, _FOLDER, name)):
            with suppress(FileNotFoundError):
                _compare(path, folder, name)


def remove_seals(path: str) -> int:
    """Remove checksums of files that are gone; how many bytes they had."""
    freed = 0
    with suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(path, _FOLDER)):
            places = (os.path.join(path, folder, name) for folder in (VERSIONS, DELETIONS))
            if not any(map(os.path.exists, places)):
                with suppress(FileNotFoundError):
                    seal = os.path.join(path, _FOLDER, name)
                    size = os.path.getsize(seal)
                    os.remove(seal)
                    freed += size
    return freed


def _manifests(path: str, version: int) -> Iterator[tuple[str, str]]:
    """Folder and name of the file that says what a version holds."""
    for number in (HIGHEST - version, version):
        name = f"{number}{MANIFEST}"
        if os.path.exists(os.path.join(path, VERSIONS, name)):
            yield VERSIONS, name


def _deletions(fragments: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Folder and name of each file that says which rows are deleted."""
    for fragment in fragments:
        file = fragment.metadata.deletion_file
        if file is not None:
            kind = {"array": "arrow", "bitmap": "bin"}[file.file_type]
            yield DELETIONS, f"{fragment.fragment_id}-{file.read_version}-{file.id}.{kind}"


def _compare(path: str, folder: str, name: str) -> None:
    file = os.path.join(path, folder, name)
    found = os.stat(file)
    state = (found.st_ino, found.st_mtime_ns, found.st_size)
    seal = Path(path, _FOLDER, name)
    if _known.get(file) == state:
        return
    with open(file, "rb") as content:
        digest = hashlib.blake2b(content.read(), digest_size=DIGEST_BYTES).hexdigest()
    try:
        expected = seal.read_text(encoding="utf-8", errors="replace")
        if not expected:  # its machine lost power before the content was on the disk
            raise FileNotFoundError(seal)
    except FileNotFoundError:
        with suppress(OSError):  # a folder that can only be read
            seal.parent.mkdir(exist_ok=True)
            write_text(seal, digest)
        expected = digest
    if expected != digest:
        raise MemoryIndexError(
            f"{path}: {folder}/{name} is damaged: not what was written, by its checksum"
        )
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[file] = state
