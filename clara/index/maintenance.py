"""Upgrade an index of an earlier release in place, in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import write_fragments

from clara.index.build import DATA_VERSION
from clara.index.catalog import Catalog
from clara.index.contents import Contents
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.folders import local_path
from clara.index.header import Header
from clara.index.joining import holds, keep_whole, remove_files
from clara.index.layout import encode
from clara.index.locks import folder_lock
from clara.index.snapshot import Snapshot

_TRIES = 20  # while other processes add


@dataclass(frozen=True)
class Upgraded:
    """What `upgrade` did.

    Attributes:
        path: the folder, absolute.
        changed: False if there was nothing to do.
        duplicate_ids: ids that were stored more than once; the first row of each was kept.
        removed_rows: how many rows that took away.
    """

    path: str
    changed: bool
    duplicate_ids: list[str]
    removed_rows: int


def upgrade(
    path: str | os.PathLike[str],
    *,
    fingerprint: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Upgraded:
    """Upgrade an index to the newest format and another fingerprint, and remove duplicates.

    It is one commit. A process killed before it leaves the index as it was, and files that are not
    part of it. Memory keeps every bit. Documents keep their order. Other processes may read
    meanwhile, and go on with the upgraded index; if they add, all is written again. The files of
    the earlier format stay: they are a version of the dataset until old versions are removed.

    Args:
        fingerprint: of the model that wrote the memory, as this release computes it. The caller
            has compared that model with the index; the same as before by default.
        on_progress: is told how many rows were just written.

    Raises:
        MemoryIndexError: no index, one that is damaged, or it cannot be written.
    """
    folder = local_path(path)
    Snapshot.latest(folder)  # says what is wrong with the path, before it is locked
    with folder_lock(folder):  # where there is none, Lance's commits still exclude each other
        for _ in range(_TRIES):
            snapshot = Snapshot.latest(folder)
            header = replace(
                snapshot.header,
                fingerprint=fingerprint or snapshot.header.fingerprint,
                identity=snapshot.identity,
                storage=snapshot.header.storage_name,
            )
            if header == snapshot.header:
                return Upgraded(folder, False, [], 0)
            if snapshot.header.storage is not None:
                if _with_header(snapshot, header):
                    return Upgraded(folder, True, [], 0)
                continue
            catalog = Catalog()
            catalog.extend(snapshot.heads())
            if _rewritten(Contents(snapshot, catalog), header, on_progress):
                removed = snapshot.count - len(catalog.rows)
                return Upgraded(folder, True, list(catalog.duplicates), removed)
    raise MemoryIndexError(f"{folder}: other processes write to it all the time; stop them")


def _with_header(snapshot: Snapshot, header: Header) -> bool:
    """Commit another header; False if another process committed first."""
    operation = lance.LanceOperation.Merge(
        [part.metadata for part in snapshot.dataset.get_fragments()],
        lance.schema.LanceSchema.from_pyarrow(header.schema),
    )
    return _committed(snapshot, operation)


def _rewritten(
    contents: Contents, header: Header, on_progress: Callable[[int], None] | None
) -> bool:
    """Commit all documents in the format of another header; False if another process was first.

    Files that no commit holds are removed again.
    """
    snapshot = contents.snapshot
    failed: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for documents in contents.batches():
                yield encode(header, documents)
                if on_progress is not None:
                    on_progress(len(documents))
        except Exception as error:
            failed.append(error)
            raise

    with failures_in(snapshot.path, "writing the documents"):
        try:
            written = write_fragments(
                pa.RecordBatchReader.from_batches(header.schema, batches()),
                snapshot.path,
                mode="overwrite",
                data_storage_version=DATA_VERSION,
            )
            keep_whole(snapshot.path, written)
        except Exception:
            if failed:  # what was read, not what Lance says of it
                raise failed[0] from None
            raise
    if _committed(snapshot, lance.LanceOperation.Overwrite(header.schema, written)):
        return True
    with failures_in(snapshot.path, "reading"):
        if holds(Snapshot.latest(snapshot.path).dataset, written):
            return True  # what failed came after the commit
    remove_files(snapshot.path, written)
    return False


def _committed(snapshot: Snapshot, operation: Any) -> bool:
    """Commit to the version that was read; False if another process committed first."""
    with failures_in(snapshot.path, "writing the header"):
        try:
            lance.LanceDataset.commit(
                snapshot.path,
                operation,
                read_version=snapshot.dataset.version,
                max_retries=0,
            )
        except Exception:
            if Snapshot.latest(snapshot.path).dataset.version == snapshot.dataset.version:
                raise
            return False
    return True
