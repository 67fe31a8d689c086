"""Bring an index in step with its sources: batch by batch, in commits of one or more."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress

from clara.corpus import CorpusDocument, CorpusError, Failure, Reading
from clara.corpus.listing import Origin
from clara.data.values import DataError, shown
from clara.index import MemoryIndex, MemoryIndexError
from clara.index.columns import RESERVED, check_columns
from clara.index.corpus import Advance, Compress, Shown
from clara.index.origins import read_origins, record_origins
from clara.memory.documents import CompressedDocuments
from clara.sync.built import BuildError, Built, Detail, no_progress
from clara.sync.deciding import Decision, Pruning, Stored, decide, plan_pruning
from clara.sync.origins import as_text, check_origins, from_text
from clara.sync.storing import compressed_of, store

BATCH = 256
"""Documents that are compressed at a time, at most."""

PERIOD = 1.0
"""Seconds after which what was compressed is stored, if a batch does not take longer.

It is looked at whenever a document was read. So what waits while a source has none to give is
stored when it has one. A process that is killed loses what waits and one batch. Where compressing
or reading fails, only a batch is lost.
"""

_BATCH_CHARACTERS = 4_000_000
_READY_BYTES = 1 << 26  # of memory that waits to be stored
_LISTED = 10  # ids in a message

Create = Callable[[Mapping[str, type]], MemoryIndex]
"""Makes an empty index with these columns for metadata."""

Confirm = Callable[[int, int], bool]
"""Is asked before more than a tenth is deleted, and before anything is after a pattern changed: how
many documents, and of how many."""

ALL = frozenset({Decision.ADD, Decision.REPLACE})


class Build:
    """One pass over sources, after which an index holds their documents.

    Documents that the index holds with the same digest are left alone, whoever stored them. So a
    build that was killed goes on where it was.

    The metadata of the first build are the columns of the index. Later values must have the same
    types. Fields without a column are left out, and so are those that have the name of a column of
    the index's own; `Built.left_out` names them.

    Args:
        reading: of the sources.
        index: None makes one when the first documents are stored.
        create: makes it.
        compress: makes memory of documents. It raises DataError for a document that it cannot
            read, which is then a failure, and the others are compressed without it.
        allowed: what may be done with documents; one that needs anything else is a failure.
        prune: delete documents of these sources that are gone from them, but not after a failure.
        confirm: see `Confirm`; None deletes no more than a tenth of the sources' documents.

    Attributes:
        built: what was done so far.
        total: documents in the sources, as far as that is known before all of them are read.

    Raises:
        DataError: sources overlap, or the types of metadata are not those of the index.
        MemoryIndexError: the index cannot be read, or has no columns for metadata.
    """

    def __init__(
        self,
        reading: Reading,
        index: MemoryIndex | None,
        create: Create,
        compress: Compress,
        *,
        allowed: Collection[Decision] = ALL,
        prune: bool = False,
        confirm: Confirm | None = None,
    ) -> None:
        self._reading, self._index, self._create = reading, index, create
        self._compress, self._allowed = compress, allowed
        self._prune, self._confirm = prune, confirm
        self._stored = {} if index is None else stored_documents(index)
        recorded = {} if index is None else recorded_origins(index, self._stored)
        check_origins(reading.listing, recorded)
        self._before = {
            name: recorded[name]
            for name, origin in reading.listing.origins.items()
            if name in recorded and recorded[name].pattern != origin.pattern
        }
        if index is not None:
            reading.fix_columns(index.columns or {})
        survey = reading.survey()
        self.total = survey.documents
        self._types = column_types(survey.types)
        if index is None:
            reading.fix_columns(self._types)
        self._to_come = dict(survey.repeated) if reading.on_duplicate == "replace" else {}
        self._held: dict[str, CorpusDocument] = {}  # copies that were passed over
        self._seen: set[str] = set()
        self._foreign: dict[str, str] = {}
        self._batch: list[CorpusDocument] = []
        self._postponed: list[CorpusDocument] | None = [] if prune else None
        self._characters = 0
        self._ready: list[CompressedDocuments] = []
        self._waiting: list[CorpusDocument] = []  # what they were made from
        self._shown: list[Shown] = []
        self._ready_since = 0.0
        self._advance: Advance = no_progress
        self.built = Built(None if index is None else index.path)
        self._detail = Detail(self.built)

    @property
    def index(self) -> MemoryIndex | None:
        """The open index; None until the first documents of a new one are stored."""
        return self._index

    def run(self, advance: Advance | None = None) -> Built:
        """Read, compress, store and prune.

        Args:
            advance: is told of progress.

        Raises:
            BuildError: at the end, if something failed that was not to be skipped. All that did
                not fail is stored.
            MemoryIndexError: the index cannot be read or written.
        """
        begin = time.perf_counter()
        self._advance = advance or no_progress
        if self._index is not None:
            self._record(self._index)
        try:
            with closing(iter(self._reading)) as documents, suppress(CorpusError):
                for document in documents:
                    self._take(document)
            self._take_held()
            self._flush()
            self._store_ready()
            self._delete_gone()
            self._store_postponed()
        except Exception:
            with suppress(Exception):  # what failed first is what is said
                self._store_ready()
            raise
        finally:
            self._count(time.perf_counter() - begin)
        self._check()
        return self.built

    def _take(self, document: CorpusDocument) -> None:
        """Put a document into the batch, or leave it alone, or hold it until another copy comes.

        Of each copy progress is told once: when it is put or left, or another takes its place.
        """
        self._seen.add(document.id)
        if self._held.pop(document.id, None) is not None:
            self._advance(1)
        if self._is_replaced_later(document.id):
            self._held[document.id] = document
        else:
            self._put(document)

    def _take_held(self) -> None:
        """Put the copies of which no later one could be read, though the survey counted one."""
        held, self._held = self._held, {}
        for document in held.values():
            self._put(document)

    def _put(self, document: CorpusDocument) -> None:
        """Put a document into the batch, or leave it alone."""
        self._store_in_time()  # reading may take longer than compressing
        stored = self._stored.get(document.id)
        decision = decide(stored, document.source, document.digest, self._reading.on_duplicate)
        if decision in self._allowed:
            self._batch.append(document)
            self._characters += len(document.text)
            if len(self._batch) >= BATCH or self._characters >= _BATCH_CHARACTERS:
                self._flush()
            return
        self._advance(1)
        if decision is Decision.REFUSE:
            self._foreign[document.id] = "" if stored is None else stored.source or ""
        elif decision is not Decision.KEEP:
            self._reading.fail(Failure(document.where, _not_allowed(document.id, decision)))
        elif stored is not None and stored.digest != document.digest:
            self.built.duplicates += 1
        else:
            self.built.unchanged += 1

    def _is_replaced_later(self, name: str) -> bool:
        """Whether another document with this id is to come, which then is the document."""
        if name not in self._to_come:
            return False
        self._to_come[name] -= 1
        return self._to_come[name] > 0

    def _flush(self) -> None:
        """Compress the batch, and store what is ready if it is time."""
        batch, self._batch, self._characters = self._batch, [], 0
        if not batch:
            return
        begin, progress = time.monotonic(), Shown(len(batch), self._advance)
        parts = compressed_of(batch, self._compress, self._reading.fail, progress.rows_done)
        waiting = {document.id for document in self._waiting}
        if not waiting.isdisjoint(document.id for document in batch) or (
            _joined_bytes([*self._ready, *parts]) > _READY_BYTES
        ):
            self._store_ready()
        if not self._waiting:
            self._ready_since = begin
        self._ready += parts
        self._waiting += batch
        self._shown.append(progress)
        self._store_in_time()

    def _store_in_time(self) -> None:
        """Store what has waited for long enough."""
        if self._waiting and time.monotonic() - self._ready_since >= PERIOD:
            self._store_ready()

    def _store_ready(self) -> None:
        """Store what was compressed, in one commit."""
        ready, self._ready = self._ready, []
        documents, self._waiting = self._waiting, []
        shown, self._shown = self._shown, []
        if ready:
            compressed = CompressedDocuments.concatenate(ready)
            del ready
            if self._index is None:
                self._index = self._create(self._types)
                self.built.index = self._index.path
                self._record(self._index)
            fail = self._reading.fail
            store(self._index, documents, compressed, fail, self.built, self._postpone)
        for progress in shown:
            last = progress is shown[-1]
            path = None if self._index is None else self._index.path
            progress.all_done(self._detail.of(path) if last else None)

    def _postpone(self, document: CorpusDocument) -> bool:
        """Whether a document waits for others to be deleted, one of which has its chunk's name."""
        if self._postponed is None:
            return False
        self._postponed.append(document)
        return True

    def _store_postponed(self) -> None:
        """Store what waited, or fail, of which progress was told before."""
        self._batch, self._postponed = self._postponed or [], None
        self._advance = no_progress
        self._flush()
        self._store_ready()

    def _record(self, index: MemoryIndex) -> None:
        """Record where the sources lie, but patterns that leave out what earlier ones brought."""
        origins = {**self._reading.listing.origins, **self._before}
        record_origins(index.path, {name: as_text(each) for name, each in origins.items()})

    def _delete_gone(self) -> None:
        """Delete documents that are gone from their sources, or say why not."""
        if self._index is None:
            return
        plan = plan_pruning(self._stored, self._reading.listing.origins, self._seen)
        if not self._prune and plan.gone:
            return
        if not plan.gone or self._is_deleted(self._index, plan):
            self._before = {}
            self._record(self._index)

    def _is_deleted(self, index: MemoryIndex, plan: Pruning) -> bool:
        """Whether what is gone may be deleted, and then was; else say why not."""
        built, failures = self.built, self._reading.failures
        if failures or self._foreign or self._repeated:
            what = f"{failures:,} failed" if failures else "ids occur twice"
            built.why_not_deleted = f"{what}, so it is not certain what is gone"
        elif (self._before or plan.is_large) and not (self._confirm or _never)(
            len(plan.gone), plan.documents
        ):
            built.why_not_deleted = self._why_asked(plan)
        else:
            built.deleted = index.delete(plan.gone, missing_ok=True)
            return True
        built.not_deleted = len(plan.gone)
        return False

    def _why_asked(self, plan: Pruning) -> str:
        """Why a deletion needs somebody's consent."""
        for name, origin in self._before.items():
            what = f"had the pattern {shown(origin.pattern)}" if origin.pattern else "was a folder"
            return f"source {shown(name)} {what} before, so it may be that they still exist"
        return f"that is more than a tenth of the {plan.documents:,} documents of these sources"

    @property
    def _repeated(self) -> bool:
        """Whether ids occur twice in the sources, which is an error."""
        return self._reading.on_duplicate == "error" and self._reading.duplicates > 0

    def _count(self, seconds: float) -> None:
        built, reading = self.built, self._reading
        built.seconds = seconds
        built.failed = reading.failures
        built.duplicates += reading.duplicates + len(self._foreign)
        built.left_out = dict(reading.columns.left_out)

    def _check(self) -> None:
        """Raise what was not to be skipped.

        Raises:
            BuildError: says what.
        """
        try:
            self._reading.check()
        except CorpusError as error:
            raise BuildError(str(error), self.built) from error
        if self._foreign:
            names = list(self._foreign.items())
            listed = ", ".join(
                f"{shown(name)} ({f'of source {shown(source)}' if source else 'of no source'})"
                for name, source in names[:_LISTED]
            )
            more = ", …" if len(names) > _LISTED else ""
            whose = "1 document has" if len(names) == 1 else f"{len(names):,} documents have"
            raise BuildError(
                f"{whose} the id of a document that another source brought: {listed}{more}; "
                "rename them, or choose skip or replace for duplicates",
                self.built,
            )
        if self._index is None:
            raise BuildError("no document could be stored, so no index was made", self.built)


def _joined_bytes(parts: Sequence[CompressedDocuments]) -> int:
    """Bytes of memory that is joined, where all have as many memory tokens as the longest."""
    rows = sum(map(len, parts))
    return max((part.memory[:1].nbytes for part in parts if len(part)), default=0) * rows


def column_types(found: Mapping[str, type]) -> dict[str, type]:
    """The columns of a new index: the fields that were found, but those that it has of its own.

    Raises:
        DataError: a name that no column can have, or too many.
    """
    types = {name: kind for name, kind in found.items() if name not in RESERVED}
    try:
        check_columns([(name, kind.__name__) for name, kind in types.items()])
    except ValueError as error:
        raise DataError(f"{error}; choose the fields to keep with --metadata-field") from error
    return types


def stored_documents(index: MemoryIndex) -> dict[str, Stored]:
    """Source and digest of each document of an index that was made with columns.

    Raises:
        MemoryIndexError: it was made without.
    """
    if index.columns is None:
        raise MemoryIndexError(
            f"{index.path}: was made without columns for metadata, so it does not tell which "
            "documents have changed; build a new index"
        )
    return {name: Stored(*known) for name, known in index.digests().items()}


def recorded_origins(index: MemoryIndex, stored: Mapping[str, Stored]) -> dict[str, Origin]:
    """Where the sources of an index lay, of those that it holds documents of."""
    alive = {each.source for each in stored.values()}
    found = {name: from_text(text) for name, text in read_origins(index.path).items()}
    return {name: origin for name, origin in found.items() if origin and name in alive}


def _not_allowed(name: str, decision: Decision) -> str:
    if decision is Decision.ADD:
        return f"document {shown(name)} is not in the index, so there is nothing to replace"
    return f"document {shown(name)} is in the index with another content"


def _never(gone: int, documents: int) -> bool:
    return False
