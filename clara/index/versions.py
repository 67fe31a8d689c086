"""The versions of an index: one for each commit, until old ones are removed."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import lance

from clara.index.errors import MemoryIndexError, failures_in
from clara.index.header import Header
from clara.index.seals import require_manifest, require_sealed
from clara.index.snapshot import deletions_of, file_of, version_numbers


class Version(NamedTuple):
    """An index as it was after one commit.

    Attributes:
        number: for `MemoryIndex.open(path, version=number)`.
        time: of the commit, UTC.
        documents, rows: how many it had.
        fingerprint: of the model that wrote its memory; "" where the header is damaged.
    """

    number: int
    time: datetime.datetime
    documents: int
    rows: int
    fingerprint: str = ""


def list_versions(path: str) -> list[Version]:
    """The versions of an index, oldest first; reads the ids of documents, each file once.

    Those that a killed clean-up has begun to remove are left out: they cannot be opened, and the
    next clean-up removes the rest of them.

    Raises:
        MemoryIndexError: a version cannot be read.
    """
    found = []
    parts: dict[object, list[str]] = {}
    rows_of: Counter[str] = Counter()
    with failures_in(path, "reading the versions"):
        for number in version_numbers(path):
            require_manifest(path, number)
        versions: Any = lance.dataset(path).versions()
        versions.sort(key=lambda each: int(each["version"]))
        for each in versions:
            number = int(each["version"])
            dataset = lance.dataset(path, version=number)
            there = dataset.get_fragments()
            if each is not versions[-1] and not has_files(path, there):
                continue
            require_sealed(path, number, there)
            fragments = {_state(part): part for part in there}
            gone = [state for state in parts if state not in fragments]
            for state in gone:
                rows_of.subtract(parts.pop(state))
            for state, part in fragments.items():
                if state not in parts:
                    parts[state] = part.to_table(columns=["document_id"])["document_id"].to_pylist()
                    rows_of.update(parts[state])
            if gone:
                rows_of = +rows_of  # without documents that have no rows any more
            time = each["timestamp"].astimezone(datetime.timezone.utc)
            rows, written_by = sum(map(len, parts.values())), _fingerprint(dataset, path)
            found.append(Version(number, time, len(rows_of), rows, written_by))
    return found


def _fingerprint(dataset: Any, path: str) -> str:
    with suppress(MemoryIndexError):
        return Header.from_schema(dataset.schema, path).fingerprint
    return ""


def has_files(path: str, fragments: Sequence[Any]) -> bool:
    """Whether all files that a version names are there."""
    names = [os.path.join("data", file.path) for part in fragments for file in part.data_files()]
    names += filter(None, (part.deletion_file() for part in fragments))
    return all(os.path.exists(os.path.join(path, name)) for name in names)


def _state(fragment: Any) -> object:
    """What tells a part of a version from all that hold other rows."""
    return file_of(fragment), deletions_of(fragment)
