"""Compress all documents of an index again, by another model, and switch to it in one commit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from clara.corpus import CorpusDocument
from clara.data.values import DataError, shown
from clara.index import Details, DuplicateIdError, Entry, MemoryIndex, MemoryIndexError
from clara.index.build import folder_lock
from clara.index.corpus import Advance, Compress, Shown
from clara.index.folders import bytes_on_disk, is_vacant, local_path
from clara.index.gate import FOLDER, closed_gate
from clara.index.header import new_header
from clara.index.migration import INDEX, only_migration, remove_migration, states, switch
from clara.index.snapshot import Snapshot
from clara.sync.build import BATCH
from clara.sync.built import Built
from clara.sync.journal import Journal
from clara.sync.transfer import details_of, texts_of
from clara.terminal.printing import size

_ROUNDS = 1000  # while others change the index
_BATCH_CHARACTERS = 4_000_000
_SIZE_EVERY = 10.0  # seconds between two looks at how large the new index is
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
        self._size, self._sized = "", 0.0
        self._advance: Advance = _no_progress
        self._migrated = Migrated(self.path, before=old.header.fingerprint)
        self._migrated.built.index = self.path
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
        self._advance = advance or _no_progress
        migrated = self._migrated
        try:
            if self._is_done:
                remove_migration(self.path, unfinished=True)
                return migrated
            with only_migration(self.path):
                new, journal = self._opened()
                migrated.version = self._switched(new, journal)
                migrated.changed = True
                shutil.rmtree(self._folder, ignore_errors=True)
        finally:
            migrated.built.seconds = time.perf_counter() - begin
        return migrated

    def _opened(self) -> tuple[MemoryIndex, Journal]:
        """The index of the other model as far as it was made, or an empty one."""
        place = os.path.join(self._folder, INDEX)
        file = os.path.join(self._folder, _JOURNAL)
        new = None
        try:
            if not is_vacant(place):
                found = Snapshot.latest(place)
                if found.header.is_like(self._wanted):
                    new = MemoryIndex(found)
                    there = set(states(found))
        except MemoryIndexError:  # damaged: it is made anew
            pass
        if new is None:
            for each in (place, file):
                _remove(each)
            columns = MemoryIndex.open(self.path).columns
            new, there = MemoryIndex.create(place, **self._arguments, columns=columns), set()
        journal = Journal(file)
        journal.begin([name for name in journal.known if name not in there])
        return new, journal

    def _switched(self, new: MemoryIndex, journal: Journal) -> int:
        """Take up changes until there are none while the index is switched; the version before.

        At first others go on. What remains then is little: they wait until it is done.
        """
        for _ in range(_ROUNDS):
            if self._take_up(new, journal) <= BATCH:
                break
        new.compact()
        new.clean_up(keep_versions=1)
        with closed_gate(self.path), folder_lock(self.path):  # of format 1
            for _ in range(_ROUNDS):
                old = Snapshot.latest(self.path)
                self._take_up(new, journal)
                made = Snapshot.latest(new.path)
                if any(fragment.num_deletions for fragment in made.fragments):
                    new.compact()
                    made = Snapshot.latest(new.path)
                if switch(old, made):
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
            try:
                return self._take_over(Snapshot.at(self.path, old.version), new, journal)
            except MemoryIndexError:
                if Snapshot.latest(self.path).version == old.version:
                    raise
                # Else files of the version may have been removed, as there is a later one.

    def _take_over(self, old: Snapshot, new: MemoryIndex, journal: Journal) -> int:
        """`_take_up` of some version."""
        wanted = {name: state.hex() for name, state in states(old).items()}
        there = states(Snapshot.latest(new.path))
        if gone := [name for name in there if name not in wanted]:
            journal.begin(gone)
            new.delete(gone)
        kept = _kept(wanted, there, journal.known)
        if self._migrated.resumed is None:
            self._migrated.resumed = kept
            self._report(kept)
        todo = list(wanted)[kept:]
        opened = MemoryIndex(old)
        for group in _groups(todo, BATCH):
            entries = opened.entries(group)
            if old.header.storage is None:  # there memory and text share a checksum
                opened.get_documents(group)
            for batch in _batches(opened, entries):
                self._store(new, journal, batch, wanted)
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
        details: dict[str, Details] | None = None
        if new.columns is not None:
            details = {entry.document_id: details_of(entry, document) for entry, document in batch}
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
        progress.all_done(self._detail(new))

    def _report(self, documents: int, detail: str | None = None) -> None:
        """Tell of progress, but of no more documents than there were."""
        documents = min(documents, self._left)
        self._left -= documents
        self._advance(documents, detail)

    def _detail(self, new: MemoryIndex) -> str:
        """What stands beside the number of documents: the compression and the size so far."""
        now = time.monotonic()
        if now - self._sized >= _SIZE_EVERY:
            self._sized, self._size = now, f", {size(bytes_on_disk(new.path))}"
        return f"{self._migrated.built.effective_compression:.1f}x compression{self._size}"


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


def _remove(path: str) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def _no_progress(documents: int, detail: str | None = None) -> None:
    pass
