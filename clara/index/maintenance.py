"""Upgrade an index of an earlier release in place, without copying memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import lance
import numpy as np

from clara.index.build import folder_lock
from clara.index.catalog import Catalog
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.folders import local_path
from clara.index.header import Header
from clara.index.snapshot import Snapshot

_AT_ONCE = 1000  # rows that one commit removes
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


def upgrade(path: str | os.PathLike[str], *, fingerprint: str | None = None) -> Upgraded:
    """Upgrade an index to the newest format and another fingerprint, and remove duplicates.

    Each step is one commit that changes no memory: a process killed between two of them leaves an
    index that can be used, and upgraded again. Documents keep their order. Other processes may
    read meanwhile, and go on with the upgraded index.

    Args:
        fingerprint: of the model that wrote the memory, as this release computes it. The caller
            has compared that model with the index; the same as before by default.

    Raises:
        MemoryIndexError: no index, one that is damaged, or it cannot be written.
    """
    folder = local_path(path)
    duplicates: dict[str, None] = {}
    removed = 0
    changed = False
    Snapshot.latest(folder)  # says what is wrong with the path, before it is locked
    with folder_lock(folder):  # of format 1; without one, Lance's commits still exclude each other
        for _ in range(_TRIES):
            snapshot = Snapshot.latest(folder)
            catalog = Catalog()
            catalog.extend(snapshot.heads())
            duplicates |= catalog.duplicates
            if gone := _removed_rows(snapshot, catalog):
                removed += gone
                changed = True
                continue
            header = replace(
                snapshot.header,
                fingerprint=fingerprint or snapshot.header.fingerprint,
                identity=snapshot.identity,
            )
            if header == snapshot.header:
                return Upgraded(folder, changed, list(duplicates), removed)
            changed |= _with_header(snapshot, header)
    raise MemoryIndexError(f"{folder}: other processes write to it all the time; stop them")


def _removed_rows(snapshot: Snapshot, catalog: Catalog) -> int:
    """Delete the rows that are no document; how many were deleted."""
    if not catalog.duplicates or catalog.positions is None:
        return 0
    surplus = np.setdiff1d(np.arange(snapshot.count), catalog.positions)
    with failures_in(snapshot.path, "removing what is stored twice"):
        table = snapshot.dataset.to_table(columns=["id"], with_row_id=True, scan_in_order=True)
        addresses = table.column("_rowid").to_numpy()[surplus]
        dataset = lance.dataset(snapshot.path, version=snapshot.dataset.version)
        for begin in range(0, len(addresses), _AT_ONCE):
            chosen = ", ".join(str(each) for each in addresses[begin : begin + _AT_ONCE])
            dataset.delete(f"_rowid IN ({chosen})")
    return len(surplus)


def _with_header(snapshot: Snapshot, header: Header) -> bool:
    """Commit another header; False if another process committed first.

    Format 1 becomes format 2 by the same commit: it declares the primary key and adds the column
    `sequence`, which is null where no file holds it.
    """
    operation = lance.LanceOperation.Merge(
        [part.metadata for part in snapshot.dataset.get_fragments()],
        lance.schema.LanceSchema.from_pyarrow(header.schema),
    )
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
