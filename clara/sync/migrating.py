"""Compress all documents of an index again, by another model, and switch to it in one commit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from clara.corpus import CorpusDocument
from clara.data.values import DataError, shown
from clara.index import Details, DuplicateIdError, Entry, MemoryIndex, MemoryIndexError
from clara.index.checking import damaged_rows_apart
from clara.index.corpus import Advance, Compress, Shown
from clara.index.errors import failures_in
from clara.index.folders import local_path
from clara.index.gate import FOLDER, closed_gate
from clara.index.header import new_header
from clara.index.locks import folder_lock
from clara.index.migration import (
    INDEX,
    document_ids,
    only_migration,
    remove_any,
    remove_folder,
    remove_migration,
    states,
    switch,
)
from clara.index.snapshot import Snapshot
from clara.sync.build import BATCH
from clara.sync.built import Built, Detail, no_progress
from clara.sync.journal import Journal
from clara.sync.transfer import details_of, texts_of

_ROUNDS = 1000  # while others change the index
_BATCH_CHARACTERS = 4_000_000
_JOURNAL = "journal.jsonl"


@dataclass
class Migrated:
    """What a migration did.

    Attributes:
        index: its folder.
        changed: False if the index was one of this model and these settings already.
        built: what was compressed in this run, all of it counted as added.
        resumed: documents that an earlier run had compressed, which was killed or failed; None if
            nothing was changed.
        before, after: fingerprints of the two models.
        version: number of the last version of the earlier model, for `MemoryIndex.open` and
            `restore`; None if nothing was changed.
    """

    index: str
    changed: bool = False
    built: Built = field(default_factory=Built)
    resumed: int | None = None
    before: str = ""
    after: str = ""
    version: int | None = None


class Migration:
    """One index that is compressed again.

    The documents are stored in another index, in a folder within the first one, in the order that
    they have. When it holds all of them as they are, it takes the place of the first one. What
    others change meanwhile is taken up before: the switch is a commit on top of the version that
    was read last, or none. A journal in that folder says what was compressed, so a migration that
    was killed goes on where it was.

    Args:
        path: of the index.
        arguments: of `MemoryIndex.create` for an index of the other model, but `path` and
            `columns`.
        compress: memory by the other model. It raises DataError for a document that it cannot
            read, before it computes anything.

    Attributes:
        total: documents to compress, those of an earlier run among them.

    Raises:
        MemoryIndexError: the index cannot be read.
        ValueError, TypeError: the arguments are not those of an index.
    """

    def __init__(
        self, path: str | os.PathLike[str], arguments: Mapping[str, Any], compress: Compress
    ) -> None:
        self.path = local_path(path)
        self._arguments, self._compress = dict(arguments), compress
        self._folder = os.path.join(self.path, FOLDER)
        old = Snapshot.latest(self.path)
        self._wanted = new_header(**self._arguments, columns=old.header.columns)
        self._is_done = old.header.is_like(self._wanted)
        self.total = 0 if self._is_done else MemoryIndex(old).info()["documents"]
        self._left = self.total  # that progress is told of
        self._advance: Advance = no_progress
        self._taken: tuple[str, int] | None = None  # the version that the new index holds
        self._may_be_cut = False
        self._migrated = Migrated(self.path, before=old.header.fingerprint)
        self._migrated.built.index = self.path
        self._detail = Detail(self._migrated.built)
        self._migrated.after = self._wanted.fingerprint

    def run(self, advance: Advance | None = None) -> Migrated:
        """Compress what is to be compressed, and switch.

        Args:
            advance: is told of progress.

        Raises:
            DataError: a document cannot be read by the other model.
            MemoryIndexError: a document is damaged, or the index cannot be read or written, or
                another process is migrating it. In each case the index stays as it is, and what
                was compressed is kept for the next run.
        """
        begin = time.perf_counter()
        self._advance = advance or no_progress
        migrated = self._migrated
        try:
            if self._is_done:
                remove_migration(self.path, unfinished=True)
                return migrated
            with only_migration(self.path):
                if self._was_done():
                    return migrated
                new, journal = self._opened()
                migrated.version = self._switched(new, journal)
                migrated.changed = True
                with suppress(OSError):
                    remove_folder(self._folder)
        finally:
            migrated.built.seconds = time.perf_counter() - begin
        return migrated

    def _was_done(self) -> bool:
        """Whether another process has migrated the index since this was made."""
        latest = Snapshot.latest(self.path).header
        if not latest.is_like(self._wanted):
            return False
        self._migrated.before = latest.fingerprint
        with suppress(OSError):
            remove_folder(self._folder)
        return True

    def _opened(self) -> tuple[MemoryIndex, Journal]:
        """The index of the other model as far as it was made, or an empty one."""
        place = os.path.join(self._folder, INDEX)
        file = os.path.join(self._folder, _JOURNAL)
        found = self._found(place)
        with failures_in(self.path, "beginning the migration"):
            if found is None:
                remove_any(place)
            if found is None or os.path.islink(file) or not os.path.isfile(file):
                remove_any(file)
        if found is None:
            columns = MemoryIndex.open(self.path).columns
            found = MemoryIndex.create(place, **self._arguments, columns=columns), set()
        new, intact = found
        journal = Journal(file)
        journal.begin([name for name in journal.known if name not in intact])
        return new, journal

    def _found(self, place: str) -> tuple[MemoryIndex, set[str]] | None:
        """What an earlier run has made, and its documents that are intact; None if it is no use."""
        try:
            if not _is_folder(place):
                return None
            found = Snapshot.latest(place)
            if not found.header.is_like(self._wanted):
                return None
            intact = set(states(found))
        except MemoryIndexError:
            return None
        for each in damaged_rows_apart(found):  # some damage ends the process that reads it
            if each.document_id is None or each.what == "names":
                return None
            intact.discard(each.document_id)
        return MemoryIndex(found), intact

    def _switched(self, new: MemoryIndex, journal: Journal) -> int:
        """Take up changes until there are none while the index is switched; the version before.

        At first others go on. What remains then is little: they wait until it is done.
        """
        for _ in range(_ROUNDS):
            if self._take_up(new, journal) <= BATCH:
                break
        new.compact()
        new.clean_up(keep_versions=1)
        self._take_up(new, journal)  # so that nothing is left to read behind a closed gate
        _without_deleted(new)
        # Writers wait before the gate, and those who passed it for the lock, where there is one.
        with closed_gate(self.path), folder_lock(self.path):
            for _ in range(_ROUNDS):
                old = Snapshot.latest(self.path)
                self._take_up(new, journal)
                if switch(old, _without_deleted(new)):
                    return old.version
        raise MemoryIndexError(
            f"{self.path}: others change it all the time; migrate it later, what was compressed "
            "is kept"
        )

    def _take_up(self, new: MemoryIndex, journal: Journal) -> int:
        """Bring the new index in step with the last version of the old one, in its order.

        Returns:
            How many documents were stored.
        """
        while True:
            old = Snapshot.latest(self.path)
            if old.header.columns != self._wanted.columns:
                raise MemoryIndexError(
                    f"{self.path}: was replaced by another index while it was migrated; begin again"
                )
            if self._taken == (old.identity, old.version):
                return 0
            try:
                stored = self._take_over(Snapshot.at(self.path, old.version), new, journal)
                self._taken = old.identity, old.version
                return stored
            except MemoryIndexError:
                if Snapshot.latest(self.path).version == old.version:
                    raise
                # Else files of the version may have been removed, as there is a later one.

    def _take_over(self, old: Snapshot, new: MemoryIndex, journal: Journal) -> int:
        """`_take_up` of some version."""
        wanted = {name: state.hex() for name, state in states(old).items()}
        there = states(Snapshot.latest(new.path))
        kept = _kept(wanted, there, journal.known)
        stays = set(list(wanted)[:kept])
        if gone := [name for name in there if name not in stays]:
            journal.begin(gone)
            new.delete(gone)
        if self._migrated.resumed is None:
            self._migrated.resumed = kept
            self._report(kept)
        todo = list(wanted)[kept:]
        opened = MemoryIndex(old)
        self._may_be_cut = old.header.settings.get("overflow") == "truncate"
        for group in _groups(todo, BATCH):
            entries = opened.entries(group)
            if old.header.storage is None:  # there memory and text share a checksum
                opened.get_documents(group)
            for batch in _batches(opened, entries):
                self._store(new, journal, batch, wanted)
        if document_ids(Snapshot.latest(new.path)) != list(wanted):
            raise MemoryIndexError(
                f"{self.path}: the new index does not hold the same documents in the same order; "
                "the index stays as it is, migrate it again"
            )
        return len(todo)

    def _store(
        self,
        new: MemoryIndex,
        journal: Journal,
        batch: Sequence[tuple[Entry, CorpusDocument]],
        wanted: Mapping[str, str],
    ) -> None:
        """Compress and store documents, in one commit."""
        names = [entry.document_id for entry, _ in batch]
        progress = Shown(len(batch), self._report)
        try:
            compressed = self._compress(
                [document.plain() for _, document in batch], on_progress=progress.rows_done
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}; the index stays as it is") from error
        made = set(compressed.document_ids)
        if made != set(names):
            wrong = next((name for name in names if name not in made), None)
            raise MemoryIndexError(
                f"{self.path}: the model compressed "
                + ("documents that it was not given" if wrong is None else f"no {shown(wrong)}")
                + "; the index stays as it is"
            )
        details: dict[str, Details] | None = None
        if new.columns is not None:
            details = {entry.document_id: self._details(entry, each) for entry, each in batch}
        journal.begin(names)
        try:
            new.upsert(compressed, details)
        except DuplicateIdError as error:
            raise MemoryIndexError(
                f"{self.path}: a chunk of a document would have the id of document "
                f"{shown(error.ids[0])}; delete or rename one of them, the index stays as it is"
            ) from error
        journal.end({name: wanted[name] for name in names})
        built = self._migrated.built
        built.added += len(batch)
        built.count_rows(compressed)
        progress.all_done(self._detail.of(new.path))

    def _details(self, entry: Entry, document: CorpusDocument) -> Details:
        """Details of a document, without the digest of one that was cut.

        So it differs from its source, and a build from there stores all that the model reads.
        """
        details = details_of(entry, document)
        if self._may_be_cut and document.digest != entry.digest:
            return replace(details, digest=None)
        return details

    def _report(self, documents: int, detail: str | None = None) -> None:
        """Tell of progress, but of no more documents than there were."""
        documents = min(documents, self._left)
        self._left -= documents
        self._advance(documents, detail)


def _kept(wanted: Mapping[str, str], there: Mapping[str, object], known: Mapping[str, str]) -> int:
    """How many of the first documents of an index another one holds, as they are and in order.

    What is stored later comes behind them, so only these can stay.
    """
    names = iter(there)
    for count, (name, state) in enumerate(wanted.items()):
        if known.get(name) != state or name not in names:  # which goes on behind the last one
            return count
    return len(wanted)


def _groups(names: Sequence[str], most: int) -> Iterator[list[str]]:
    left = iter(names)
    while group := list(islice(left, most)):
        yield group


def _batches(
    index: MemoryIndex, entries: Sequence[Entry]
) -> Iterator[list[tuple[Entry, CorpusDocument]]]:
    """Documents with their texts, not too many characters at a time."""
    batch: list[tuple[Entry, CorpusDocument]] = []
    characters = 0
    for entry, document in zip(entries, texts_of(index, entries), strict=True):
        batch.append((entry, document))
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _without_deleted(new: MemoryIndex) -> Snapshot:
    """The last version of an index, whose files hold no deleted rows."""
    made = Snapshot.latest(new.path)
    if any(fragment.num_deletions for fragment in made.fragments):
        new.compact()
        made = Snapshot.latest(new.path)
    return made


def _is_folder(path: str) -> bool:
    """Whether there is a folder that neither is a link nor holds one, to files of others."""
    if os.path.islink(path) or not os.path.isdir(path):
        return False
    with failures_in(path, "reading"), os.scandir(path) as found:
        return not any(each.is_symlink() for each in found)
