"""One pass over sources: a stream of documents, with what failed reported and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from clara.corpus.arrow import dataset_rows, hub_rows, parquet_rows
from clara.corpus.documents import CorpusDocument, Extracted, Failure
from clara.corpus.extraction.process import Extractor
from clara.corpus.fields import Columns, FieldNames, Occurring, Roles, as_document
from clara.corpus.kinds import EXTRACTED, TABLES
from clara.corpus.limits import ExpandsError, Limits
from clara.corpus.listing import Listing, SourceFile, list_sources
from clara.corpus.opening import opened
from clara.corpus.readers.delimited import delimited_rows
from clara.corpus.readers.json_lines import json_rows
from clara.corpus.readers.plain import read_markdown, read_text
from clara.corpus.readers.rows import Row
from clara.data.values import DataError, shown

OnError = Literal["fail", "skip"]
OnDuplicate = Literal["error", "skip", "replace"]

_LISTED = 10  # duplicate ids in a message
_ROWS = {"jsonl": json_rows, "csv": delimited_rows}
_TEXTS = {"text": read_text, "markdown": read_markdown}


class CorpusError(DataError):
    """Some of a corpus could not be read, or an id occurs more than once."""


@dataclass(frozen=True)
class Survey:
    """What a look at sources tells, before their documents are used.

    Attributes:
        documents: how many there are, if every file can be read.
        types: of the metadata.
        repeated: how often each id occurs that occurs more than once.
    """

    documents: int
    types: Mapping[str, type]
    repeated: Mapping[str, int]


class Reading:
    """The documents of sources, in an order that depends on nothing but their content.

    Iterating reads everything once, whatever fails. It raises at the end where something failed
    that was not to be skipped, so that all failures are known after one pass. A consumer must not
    take what it got for the whole corpus before the iteration has ended.

    Args:
        sources: see `list_sources`.
        names: which fields of records are text, id, title and metadata.
        limits: on what one file or record may take.
        on_error: "fail" raises at the end if a file or record could not be read.
        on_duplicate: "error" leaves out later documents with an id that is there, and raises at
            the end; "skip" leaves them out; "replace" gives them too, with
            `CorpusDocument.replaces` set: the consumer drops the earlier one.
        on_failure: is called with every failure when it happens.

    Attributes:
        listing: the files, before anything is read.
        failures: how many files and records could not be read.
        duplicates: how many documents had the id of an earlier one.
        counts: documents given, by kind of file.
        columns: the types of the metadata so far, and which fields were left out.

    Raises:
        DataError: as `list_sources`.

    Example:
        >>> for document in Reading(["handbook"], on_error="skip"):  # doctest: +SKIP
        ...     print(document.id, len(document.text))
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        names: FieldNames | None = None,
        limits: Limits | None = None,
        on_error: OnError = "fail",
        on_duplicate: OnDuplicate = "error",
        on_failure: Callable[[Failure], None] | None = None,
    ) -> None:
        _check_choice("on_error", on_error, ("fail", "skip"))
        _check_choice("on_duplicate", on_duplicate, ("error", "skip", "replace"))
        self._names = FieldNames() if names is None else names
        self._limits = Limits() if limits is None else limits
        self.on_error: Final = on_error
        self.on_duplicate: Final = on_duplicate
        self._on_failure = on_failure
        self._fixed: Mapping[str, type] | None = None
        self._too_large: dict[str, str] = {}  # files that a survey found so, and what it said
        self.listing: Listing = list_sources(sources)
        self._begin()

    def _begin(self) -> None:
        self.failures = 0
        self.duplicates = 0
        self.counts: Counter[str] = Counter()
        self.columns = Columns.of(self._names, self._fixed)
        self._occurring = Occurring(list(self._names.declared))
        self._is_at_end = False
        self._first_failure: Failure | None = None
        self._repeated: dict[str, tuple[str, str]] = {}
        self._places: dict[str, str] = {}  # where each id was first

    def __iter__(self) -> Generator[CorpusDocument, None, None]:
        """Read everything from the start.

        Raises:
            CorpusError: at the end, as the class says.
        """
        self._begin()
        for failure in self.listing.failures:
            self.fail(failure)
        with Extractor(self._limits) as extractor:
            for file in self.listing.files:
                try:
                    for document in self._documents(file, extractor):
                        if (kept := self._kept(document)) is not None:
                            self.counts[file.kind] += 1
                            yield replace(kept, kind=file.kind, source=file.source)
                except (DataError, OSError) as error:
                    self.fail(self._failed(file, error))
        self._is_at_end = True
        self.check()

    def fix_columns(self, types: Mapping[str, type]) -> None:
        """Keep only metadata of these types from now on, such as those that an index has.

        Other fields are left out; see `Columns.left_out`.

        Raises:
            DataError: a field is declared with another type.
        """
        Columns.of(self._names, types)
        self._fixed = dict(types)

    def survey(self) -> Survey:
        """Count the documents and learn the types of their metadata.

        Tables are read once for it. Of all other files it is known that each is one document
        without metadata. Nothing is reported: reading all reports it. A field that holds
        nothing but what metadata cannot have, such as lists, has no type. After a survey, a
        table that expands to too much is a failure before any of its rows is given.

        Raises:
            DataError: a field of metadata that is asked for is in none of the tables.
        """
        self._begin()
        self.columns.surveying = True
        report, self._on_failure = self._on_failure, None
        times: Counter[str] = Counter()
        try:
            with Extractor(self._limits) as extractor:
                for file in self.listing.files:
                    if file.kind not in TABLES:
                        times[file.id] += 1
                        continue
                    try:
                        for document in self._records(file, extractor):
                            times[document.id] += 1
                    except (DataError, OSError) as error:
                        self._failed(file, error)
                        if isinstance(error, ExpandsError):
                            self._too_large[file.path] = str(error)
        finally:
            self._on_failure = report
        self._occurring.check(self._fixed or ())
        repeated = {name: count for name, count in times.items() if count > 1}
        return Survey(times.total(), dict(self.columns.types), repeated)

    def _documents(self, file: SourceFile, extractor: Extractor) -> Iterator[CorpusDocument]:
        """The documents of a file; failures of records are reported.

        Raises:
            DataError, OSError: the file, or the rest of it, cannot be read.
        """
        if file.kind in TABLES:
            yield from self._records(file, extractor)
            return
        descriptor = opened(file.path, file.root)
        if file.kind in EXTRACTED:
            found: Extracted = extractor.read(file.kind, descriptor)
        else:
            found = _TEXTS[file.kind](descriptor, self._limits)
        yield CorpusDocument(file.id, found.text, found.title, marks=found.marks, where=file.shown)

    def _records(self, file: SourceFile, extractor: Extractor) -> Iterator[CorpusDocument]:
        if file.path in self._too_large:
            raise DataError(self._too_large[file.path])
        rows: Iterator[Row | Failure]
        if file.kind == "dataset":
            rows = (
                hub_rows(file.tables, file.shown, extractor)
                if file.tables
                else dataset_rows(file.path, file.shown, extractor)
            )
        elif file.kind == "parquet":
            rows = parquet_rows(opened(file.path, file.root), file.shown, extractor)
        else:
            rows = _ROWS[file.kind](opened(file.path, file.root), file.shown, self._limits)
        roles: Roles | None = None
        empty = True
        for row in rows:
            empty = False
            if isinstance(row, Failure):
                self.fail(row)
                continue
            if row.columns is not None and roles is None:  # a table without them fails as a whole
                self._occurring.take(row.columns, table=True)
                roles = Roles.of(self._names, row.columns, table=True)
            if roles is None:
                self._occurring.take(row.values.keys(), table=False)
            try:
                chosen = roles or Roles.of(self._names, row.values.keys(), table=False)
                name = f"{file.id}/{row.number}"
                document = as_document(row.values, chosen, self.columns, name, row.where)
            except DataError as error:
                self.fail(Failure(row.where, str(error)))
                continue
            yield document
        if empty:
            raise DataError("holds no documents")

    def _kept(self, document: CorpusDocument) -> CorpusDocument | None:
        """The document, unless an earlier one has its id and keeps it."""
        earlier = self._places.get(document.id)
        if earlier is None:
            self._places[document.id] = document.where
            return document
        self.duplicates += 1
        if self.on_duplicate == "replace":
            return replace(document, replaces=True)
        if len(self._repeated) < _LISTED:
            self._repeated.setdefault(document.id, (earlier, document.where))
        return None

    def _failed(self, file: SourceFile, error: DataError | OSError) -> Failure:
        """A file that could not be read, or not to its end."""
        known = error.strerror if isinstance(error, OSError) else None
        failure = Failure(file.shown, known or str(error))
        if file.kind in TABLES:
            self._occurring.unread = self._occurring.unread or str(failure)
        return failure

    def fail(self, failure: Failure) -> None:
        """Count and report a failure, also one of what is done with a document."""
        self.failures += 1
        self._first_failure = self._first_failure or failure
        if self._on_failure is not None:
            self._on_failure(failure)

    def check(self) -> None:
        """Raise what iterating raises at its end, for one who stops before.

        Raises:
            CorpusError: something failed that was not to be skipped, an id occurs twice, or no
                table has a field of metadata that is asked for.
        """
        try:
            if self._is_at_end:  # else a later source may have the field
                self._occurring.check(self._fixed or ())
        except DataError as error:
            raise CorpusError(str(error)) from error
        if self.on_duplicate == "error" and self.duplicates:
            listed = ", ".join(
                f"{shown(name)} ({first} and {second})"
                for name, (first, second) in self._repeated.items()
            )
            more = ", …" if self.duplicates > len(self._repeated) else ""
            documents = "1 document has" if self.duplicates == 1 else f"{self.duplicates:,} have"
            raise CorpusError(
                f"{documents} the id of an earlier document: {listed}{more}; "
                "rename them, or choose skip or replace for duplicates"
            )
        if self.on_error == "fail" and self._first_failure is not None:
            several = f"{self.failures:,} files or records could not be read, the first is "
            one = self.failures == 1
            raise CorpusError(f"{'could not be read: ' if one else several}{self._first_failure}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise DataError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
