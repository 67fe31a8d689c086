"""Keep an open index in order: earlier versions, joined files, and room on the disk."""

from __future__ import annotations

import datetime
import os
from typing import NamedTuple

from clara.errors.checks import as_integer
from clara.index.changing import Changing
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.folders import VIEWS
from clara.index.joining import joined
from clara.index.migration import no_migration, remove_migration
from clara.index.seals import remove_seals, require_sealed
from clara.index.snapshot import Snapshot
from clara.index.versions import Version, has_files, list_versions
from clara.index.views.choice import remove_views

_TRIES = 20  # while others change the rows that are rewritten
_OVERTAKEN = "commit conflict"


class Compacted(NamedTuple):
    """What `compact` did.

    Attributes:
        removed: files of documents that the index no longer needs.
        written: files that took their place.
    """

    removed: int
    written: int


class Upkeep(Changing):
    """The methods of `MemoryIndex` for its versions and files."""

    def versions(self) -> list[Version]:
        """The versions that can be opened, oldest first: one for each commit.

        Raises:
            MemoryIndexError: a version cannot be read.
        """
        return list_versions(self._snapshot.path)

    def restore(self, version: int) -> None:
        """Make an earlier version the last one again, in one commit.

        What was committed after it is no longer in the index, but stays in versions of its own.
        Also works on an index that was opened at a version, so that a last version that is damaged
        can be left behind: `MemoryIndex.open(path, version=n).restore(n)`. A version from before a
        migration brings the earlier model's index back.

        Args:
            version: the number of one of `versions`.

        Raises:
            TypeError, ValueError: not a positive integer.
            MemoryIndexError: there is no such version, or it cannot be written.
        """
        number = as_integer(version, "version", least=1)
        with self._lock:
            wanted = Snapshot.at(self._snapshot.path, number)
            with failures_in(wanted.path, "restoring"):
                if number != wanted.dataset.latest_version:
                    if not has_files(wanted.path, wanted.dataset.get_fragments()):
                        raise MemoryIndexError(
                            f"{wanted.path}: files of version {number} are gone, as a killed "
                            "clean-up leaves it; the index stays as it is"
                        )
                    wanted.dataset.restore()
                    require_sealed(wanted.path, wanted.version, wanted.dataset.get_fragments())
            if not self._snapshot.pinned:  # it may be of another model, from before a migration
                self._snapshot = Snapshot.latest(wanted.path)
                self._header, self._catalog, self._contents = self._snapshot.header, None, None

    def compact(self) -> Compacted:
        """Join small files, and write those that hold deleted rows again without them.

        Ids, order and answers stay what they are. One commit puts the new files in place, after
        one that reserves their numbers; others may read and write meanwhile. Earlier versions keep
        their files until `clean_up` removes them, so this needs room for both.

        Raises:
            MemoryIndexError: a file cannot be read or written, or others change the index all the
                time.
        """
        self._require_writable()
        rows = self._current().batch_rows
        for _ in range(_TRIES):
            dataset = Snapshot.latest(self._snapshot.path).dataset
            try:
                with failures_in(self._snapshot.path, "compacting"):
                    done = joined(self._snapshot.path, dataset, rows)
            except MemoryIndexError as error:
                if _OVERTAKEN not in str(error):
                    raise
                continue
            latest = Snapshot.latest(self._snapshot.path)  # which gives the version its checksums
            self._remove_earlier_views(latest)
            return Compacted(done.fragments_removed, done.fragments_added)
        raise MemoryIndexError(
            f"{self._snapshot.path}: others change the index all the time; compact it later"
        )

    def clean_up(
        self,
        *,
        keep_versions: int | None = None,
        older_than: datetime.timedelta | None = None,
        unfinished: bool = False,
    ) -> int:
        """Remove earlier versions, and the files that no other version has. Cannot be undone.

        The last version stays. Who is reading an earlier one at this moment gets an error; a call
        that begins later reads the last version.

        Args:
            keep_versions: how many of the last versions stay, at least 1.
            older_than: remove versions older than this. One of the two is needed.
            unfinished: also remove files that belong to no version, which a killed process has
                left, and a migration that was not finished. Files of a commit that is being made
                look the same: only for when no other process writes; nothing of both is removed
                while a process migrates the index. Without it they are removed once they are a
                week old.

        Returns:
            Bytes that were freed.

        Raises:
            TypeError, ValueError: an argument is not as stated.
            MemoryIndexError: files cannot be removed.
        """
        if (keep_versions is None) == (older_than is None):
            raise ValueError("give one of keep_versions and older_than")
        if keep_versions is not None:
            keep_versions = as_integer(keep_versions, "keep_versions", least=1)
        elif not isinstance(older_than, datetime.timedelta):
            raise TypeError(f"older_than must be a timedelta, got {type(older_than).__name__}")
        elif older_than < datetime.timedelta(0):
            raise ValueError(f"older_than must not be negative, got {older_than}")
        with self._lock:
            self._require_writable()
            path = self._snapshot.path
            latest = Snapshot.latest(path)
            with no_migration(path) as free, failures_in(path, "removing old versions"):
                done = latest.dataset.cleanup_old_versions(
                    older_than, keep_versions, delete_unverified=unfinished and free
                )
            views = self._remove_earlier_views(latest)
            freed = int(done.bytes_removed) + remove_seals(path) + views
            return freed + remove_migration(path, unfinished=unfinished)

    def _remove_earlier_views(self, latest: Snapshot) -> int:
        """Remove views of versions before the last one; how many bytes they had."""
        name, version = latest.identity, latest.version
        freed = remove_views(os.path.join(latest.path, VIEWS), name, before=version)
        if self._views.folder is not None:
            freed += remove_views(self._views.folder, name, before=version, alone=False)
        return freed
