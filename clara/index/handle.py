"""An open index folder. Other processes may add to the index, upgrade it, or replace it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from clara.index.catalog import Catalog
from clara.index.contents import Contents
from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.index.heads import Heads
from clara.index.snapshot import Snapshot
from clara.index.views.rule import USUAL, ViewRule
from clara.memory.documents import CompressedDocuments

TRIES = 3
"""Of a read or of adding, while the index is replaced or upgraded again and again."""

Result = TypeVar("Result")
Own = TypeVar("Own", bound="Handle")


class Handle:
    """Reads the last commit in a folder, whichever process made it, and keeps what still holds."""

    _views: ViewRule = USUAL

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._header = snapshot.header
        self._catalog: Catalog | None = None
        self._contents: Contents | None = None
        self._lock = threading.RLock()  # guards all of these; held while any of them is loaded

    def at_this_version(self: Own) -> Own:
        """The index as it is now, to read: it does not see what is committed later.

        It is as if opened with the number of its last version. It needs the files of that
        version, which `clean_up` removes once there is a later one.

        Raises:
            MemoryIndexError: the index cannot be read.
        """
        with self._lock:
            now = self._refreshed()
        still = Snapshot(now.dataset, now.header, now.path, None, pinned=True)
        return type(self)(still)._with(self._views)

    def _with(self: Own, views: ViewRule) -> Own:
        """Itself, with another rule for views."""
        self._views = views
        return self

    def _current(self) -> Contents:
        """The last commit, whichever process made it."""
        with self._lock:
            self._refreshed()
            if self._contents is None:
                self._catalog = Catalog()
                self._catalog.extend(self._snapshot.heads())
                self._contents = Contents(self._snapshot, self._catalog)
            return self._contents

    def _unread(self) -> Snapshot | None:
        """The last commit, if its documents' ids were not read; None if they were."""
        with self._lock:
            if self._catalog is not None:
                return None
            return self._refreshed()

    def _refreshed(self) -> Snapshot:
        """The last commit, whichever process made it. The caller holds the lock."""
        if not self._snapshot.is_latest:
            self._take_on(Snapshot.latest(self._snapshot.path))
        return self._snapshot

    def _take_on(self, latest: Snapshot) -> None:
        """Go on with a later commit, or with an index that was built anew. Keeps what holds."""
        before, self._header = self._header, self._same_kind(latest)
        same = before == latest.header and latest.continues(self._snapshot)
        grown, earlier = latest.count > self._snapshot.count, self._snapshot
        self._snapshot = latest
        if self._catalog is None or not same:
            self._catalog = self._contents = None
        elif grown:
            catalog, self._catalog, self._contents = self._catalog, None, None
            catalog.extend(self._heads_behind(earlier, latest, catalog.stored))
            self._catalog, self._contents = catalog, Contents(latest, catalog)

    def _heads_behind(self, earlier: Snapshot, latest: Snapshot, start: int) -> Iterable[Heads]:
        """The small columns of rows from `start` on, which came behind those of `earlier`."""
        return latest.heads(start=start)

    def _same_kind(self, latest: Snapshot) -> Header:
        """The header to go on with.

        Raises:
            MemoryIndexError: this handle cannot stand for what is in the folder.
        """
        upgraded = latest.identity == self._snapshot.identity
        if not upgraded and not latest.header.is_like(self._header):
            before, now = self._header.fingerprint, latest.header.fingerprint
            other = "" if before == now else f" of another model ({now[:12]}, not {before[:12]})"
            raise MemoryIndexError(
                f"{self._snapshot.path}: was replaced by another index{other}; open it again"
            )
        return latest.header

    def _require_writable(self) -> None:
        """Refuse to change an index that was opened at an earlier version."""
        if self._snapshot.pinned:
            raise MemoryIndexError(
                f"{self._snapshot.path}: version {self._snapshot.version} is open, which can only "
                "be read; open the index without a version to change it, or restore the version"
            )

    def _read_catalog(self) -> Catalog:
        """Read the catalog of the last commit. The caller holds the lock."""
        self._current()
        if self._catalog is None:
            raise MemoryIndexError(f"{self._snapshot.path}: the catalog of the index is not loaded")
        return self._catalog

    def _read(self, read: Callable[[Contents], Result]) -> Result:
        """What `read` makes of the last commit; again if there is another one meanwhile.

        Files of a version may be removed as soon as there is a later one.
        """
        for _ in range(TRIES - 1):
            contents = self._current()
            try:
                return read(contents)
            except MemoryIndexError:
                if self._current() is contents:
                    raise
        return read(self._current())

    def _iterate(self, contents: Contents) -> Iterator[CompressedDocuments]:
        try:
            yield from contents.batches()
        except MemoryIndexError as error:
            if self._current().snapshot.identity == contents.snapshot.identity:
                raise
            raise MemoryIndexError(
                f"{contents.snapshot.path}: was replaced by another index while it was read; "
                "read it again"
            ) from error


def as_ids(ids: Sequence[str], name: str = "ids") -> list[str]:
    """Ids as a list.

    Raises:
        TypeError: a single string, or one of them is none.
    """
    if isinstance(ids, str):
        raise TypeError(f"{name} must be a list of ids, got a single string")
    found = list(ids)
    if not all(isinstance(each, str) for each in found):
        wrong = next(each for each in found if not isinstance(each, str))
        raise TypeError(f"{name} must be a list of ids, one of them is {repr(wrong)[:80]}")
    return found
