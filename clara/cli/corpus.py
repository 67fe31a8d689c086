"""`clara corpus`: what files hold as documents, shown or written as JSON lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import streams
from clara.cli.errors import CommandError, Group
from clara.cli.options import Json
from clara.cli.paths import check_parent
from clara.cli.sources import (
    DuplicateChoice,
    ErrorChoice,
    Failures,
    IdField,
    MaxDocument,
    MaxExpanded,
    MaxMemory,
    MaxSeconds,
    MetadataField,
    NoMetadata,
    OnDuplicate,
    OnError,
    Sources,
    TextField,
    TitleField,
    field_names,
    limits_of,
    reading_of,
)
from clara.errors import ClaraError
from clara.terminal.printing import excerpt, one_line, print_json, size

if TYPE_CHECKING:
    from collections import Counter

    from clara.corpus import CorpusDocument, Reading
    from clara.terminal.progress import DocumentProgress

corpus = typer.Typer(
    cls=Group,
    name="corpus",
    no_args_is_help=True,
    help="Show files of many kinds as documents, or write them as JSON lines.",
)

_MOST_SUFFIXES = 5
_EXCERPT = 60  # characters
_LOOKED_AT = 1000  # characters of a text that an excerpt is made of


@corpus.command("show")
def show(
    sources: Sources,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Stop after so many documents. Default: all are read.",
            show_default=False,
        ),
    ] = None,
    text_field: TextField = None,
    id_field: IdField = None,
    title_field: TitleField = None,
    metadata_field: MetadataField = None,
    no_metadata: NoMetadata = False,
    on_error: ErrorChoice = OnError.fail,
    on_duplicate: DuplicateChoice = OnDuplicate.error,
    max_document_mb: MaxDocument = 16.0,
    max_seconds: MaxSeconds = 60.0,
    max_memory_mb: MaxMemory = 1500.0,
    max_expanded_mb: MaxExpanded = 256.0,
    as_json: Json = False,
) -> None:
    """Print what would be read: id, kind, size and beginning of each document, and counts.

    Failures are listed on standard error. Nothing is written.
    """
    failures = Failures()
    names = field_names(text_field, id_field, title_field, metadata_field, no_metadata)
    limits = limits_of(max_document_mb, max_seconds, max_memory_mb, max_expanded_mb)
    reading = reading_of(sources, names, limits, on_error, on_duplicate, failures)
    documents: list[dict[str, Any]] = []
    error: ClaraError | None = None
    stopped = False
    try:
        with closing(iter(reading)) as stream:
            for document in islice(stream, limit):
                if as_json:
                    documents.append(described(document))
                else:
                    print(line(document))
        stopped = limit is not None and sum(reading.counts.values()) == limit
        reading.check()
    except ClaraError as raised:  # what was read is shown first
        error = raised
    if as_json:
        print_json(
            {"documents": documents, **counted(reading), "errors": failures.shown}
            | {"stopped": stopped}
        )
    else:
        print(summary(reading) + (f"; stopped after {limit:,} documents" if stopped else ""))
    if error is not None:
        raise error


@corpus.command("write")
def write(
    sources: Sources,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of JSON lines to write or replace.")
    ],
    text_field: TextField = None,
    id_field: IdField = None,
    title_field: TitleField = None,
    metadata_field: MetadataField = None,
    no_metadata: NoMetadata = False,
    on_error: ErrorChoice = OnError.fail,
    on_duplicate: DuplicateChoice = OnDuplicate.error,
    max_document_mb: MaxDocument = 16.0,
    max_seconds: MaxSeconds = 60.0,
    max_memory_mb: MaxMemory = 1500.0,
    max_expanded_mb: MaxExpanded = 256.0,
    as_json: Json = False,
) -> None:
    """Write documents as the JSON lines that `clara compress` takes.

    The file is written whole or not at all: if something could not be read, it is as it was
    before, unless --on-error skip says to go on without.
    """
    streams.output_is_extra()
    target = output.expanduser()
    if target.is_dir():
        raise CommandError(f"{output}: is a folder, not a file")
    if target.exists() and not target.is_file():
        raise CommandError(f"{output}: is a pipe, socket or device, not a file")
    check_parent(target)
    if not target.absolute().parent.is_dir():
        raise CommandError(f"{output}: its folder does not exist")
    from clara.corpus import write_corpus
    from clara.terminal.progress import document_progress

    failures = Failures()
    names = field_names(text_field, id_field, title_field, metadata_field, no_metadata)
    limits = limits_of(max_document_mb, max_seconds, max_memory_mb, max_expanded_mb)
    reading = reading_of(sources, names, limits, on_error, on_duplicate, failures)
    real = os.path.realpath(target)
    if any(file.root is not None and file.path == real for file in reading.listing.files):
        raise CommandError(
            f"{output}: lies in a source, so it would be read as one of its files; choose another "
            "place, or a narrower pattern"
        )
    with document_progress("read", None) as bar:
        documents = write_corpus(target, _advancing(reading, bar))
    nbytes = target.stat().st_size
    if as_json:
        written = {"file": str(target), "documents": documents, "bytes": nbytes}
        print_json({**written, **counted(reading), "errors": failures.shown})
    else:
        given = sum(reading.counts.values())
        note = "" if documents == given else f"; the file holds the last {documents:,}"
        print(one_line(f"{target}: {size(nbytes)}, {summary(reading)}{note}"))


def _suffixes(others: Counter[str]) -> str:
    """The most common suffixes with their numbers of files."""
    ordered = sorted(others.items(), key=lambda each: (-each[1], each[0]))
    shown = ", ".join(f"{name} {number:,}" for name, number in ordered[:_MOST_SUFFIXES])
    left = len(ordered) - _MOST_SUFFIXES
    return shown if left <= 0 else f"{shown}, and {left} more suffixes"


def _advancing(reading: Reading, bar: DocumentProgress) -> Iterator[CorpusDocument]:
    for document in reading:
        bar.advance(1)
        yield document


def line(document: CorpusDocument) -> str:
    """A document on one line: id, kind, size and beginning."""
    start = document.text if document.title is None else f"{document.title}: {document.text}"
    count = len(document.marks)
    marks = f", {count:,} mark{'' if count == 1 else 's'}" if count else ""
    again = ", replaces an earlier one" if document.replaces else ""
    about = f"{document.kind}, {size(len(document.text.encode()))}{marks}{again}"
    return f"{excerpt(document.id)} [{about}] {excerpt(start[:_LOOKED_AT], _EXCERPT)}"


def described(document: CorpusDocument) -> dict[str, Any]:
    """A document as JSON holds it, with the beginning of its text."""
    return {
        "id": document.id,
        "kind": document.kind,
        "source": document.source,
        "where": document.where,
        "characters": len(document.text),
        "beginning": excerpt(document.text[:_LOOKED_AT], _EXCERPT),
        "title": document.title,
        "metadata": dict(document.metadata),
        "marks": [list(mark) for mark in document.marks],
        "digest": document.digest,
        "replaces": document.replaces,
    }


def counted(reading: Reading) -> dict[str, Any]:
    """What was read and what was not, as JSON holds it."""
    listing = reading.listing
    return {
        "counts": dict(sorted(reading.counts.items())),
        "failed": reading.failures,
        "duplicates": reading.duplicates,
        "hidden": listing.hidden,
        "linked_folders": listing.linked_folders,
        "other_kinds": dict(sorted(listing.others.items())),
    }


def summary(reading: Reading) -> str:
    """The last line for a reader."""
    count = sum(reading.counts.values())
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(reading.counts.items()))
    parts = [f"{count:,} document{'' if count == 1 else 's'}{f' ({kinds})' if kinds else ''}"]
    if reading.duplicates:
        parts.append(f"{reading.duplicates:,} with the id of an earlier one")
    parts.append(f"{reading.failures:,} failed")
    listing = reading.listing
    skipped = []
    if listing.hidden:
        skipped.append(f"{listing.hidden:,} hidden")
    if listing.others:
        skipped.append(f"{listing.others.total():,} of other kinds ({_suffixes(listing.others)})")
    if listing.linked_folders:
        skipped.append(f"{listing.linked_folders:,} links to folders that are read")
    if skipped:
        parts.append(f"not read: {', '.join(skipped)}")
    return one_line("; ".join(parts))
