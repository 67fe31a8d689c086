"""`clara corpus`: what files hold as documents, shown or written as JSON lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import streams
from clara.cli.errors import BAD_USAGE, CommandError, Group, user_errors
from clara.cli.options import Json
from clara.cli.paths import check_parent
from clara.errors import ClaraError
from clara.terminal.printing import excerpt, one_line, print_json, say, size

if TYPE_CHECKING:
    from collections import Counter

    from clara.corpus import CorpusDocument, Failure, FieldNames, Limits, Reading
    from clara.terminal.progress import DocumentProgress

corpus = typer.Typer(
    cls=Group,
    name="corpus",
    no_args_is_help=True,
    help="Show files of many kinds as documents, or write them as JSON lines.",
)

_MOST_LISTED = 100  # failures that have a line of their own
_MOST_SUFFIXES = 5
_EXCERPT = 60  # characters
_LOOKED_AT = 1000  # characters of a text that an excerpt is made of


class OnError(Enum):
    """What becomes of the exit status if something cannot be read."""

    fail = "fail"
    skip = "skip"


class OnDuplicate(Enum):
    """What becomes of a document with the id of an earlier one."""

    error = "error"
    skip = "skip"
    replace = "replace"


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="File, folder, quoted pattern such as 'docs/**/*.md', or folder that datasets saved; "
        "NAME=PATH names it.",
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        "--text-field",
        help="Field of a record with its text. Default: contents, or else text.",
        show_default=False,
    ),
]
IdField = Annotated[
    str | None,
    typer.Option(
        "--id-field",
        help="Field with its id. Default: id, or else _id; rows of a table without either are "
        "numbered.",
        show_default=False,
    ),
]
TitleField = Annotated[
    str | None,
    typer.Option(
        "--title-field",
        help="Field with its title. Default: title, if there is one.",
        show_default=False,
    ),
]
MetadataField = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata-field",
        help="Another field to keep, as NAME or NAME:TYPE (str, int, float, bool); can be given "
        "many times. Default: all.",
        show_default=False,
    ),
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Keep no other fields.")]
ErrorChoice = Annotated[
    OnError,
    typer.Option(
        "--on-error",
        help="fail: end with an error if a file or record could not be read, after reading all "
        "others. skip: leave it out.",
    ),
]
DuplicateChoice = Annotated[
    OnDuplicate,
    typer.Option(
        "--on-duplicate",
        help="A document with the id of an earlier one is an error, is left out, or replaces it.",
    ),
]
MaxDocument = Annotated[
    float, typer.Option("--max-document-mb", help="Longest record, text file or extracted text.")
]
MaxSeconds = Annotated[
    float,
    typer.Option("--max-seconds", help="Processor time to extract one HTML, PDF or DOCX file."),
]
MaxMemory = Annotated[
    float, typer.Option("--max-memory-mb", help="Memory of the process that extracts.")
]
MaxExpanded = Annotated[
    float, typer.Option("--max-expanded-mb", help="Size of an unpacked DOCX file.")
]


class _Failures:
    """Says each failure on standard error; of many, the first ones."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def __call__(self, failure: Failure) -> None:
        if len(self.shown) < _MOST_LISTED:
            self.shown.append({"where": failure.where, "reason": failure.reason})
            say(f"failed: {failure}")
        elif len(self.shown) == _MOST_LISTED:
            self.shown.append({"where": "", "reason": "…"})
            say("further failures are only counted")


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
    failures = _Failures()
    names = _names(text_field, id_field, title_field, metadata_field, no_metadata)
    limits = _limits(max_document_mb, max_seconds, max_memory_mb, max_expanded_mb)
    reading = _reading(sources, names, limits, on_error, on_duplicate, failures)
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

    failures = _Failures()
    names = _names(text_field, id_field, title_field, metadata_field, no_metadata)
    limits = _limits(max_document_mb, max_seconds, max_memory_mb, max_expanded_mb)
    reading = _reading(sources, names, limits, on_error, on_duplicate, failures)
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


def _names(
    text: str | None,
    name: str | None,
    title: str | None,
    metadata: list[str] | None,
    no_metadata: bool,
) -> FieldNames:
    from clara.corpus import FieldNames

    if no_metadata and metadata:
        raise CommandError("--metadata-field and --no-metadata exclude each other", BAD_USAGE)
    kept = () if no_metadata else tuple(metadata) if metadata else None
    return FieldNames(text, name, title, kept)


def _limits(document: float, seconds: float, memory: float, expanded: float) -> Limits:
    from clara.corpus import Limits

    with user_errors():
        return Limits(document, seconds, memory, expanded)


def _reading(
    sources: list[str],
    names: FieldNames,
    limits: Limits,
    on_error: OnError,
    on_duplicate: OnDuplicate,
    failures: _Failures,
) -> Reading:
    from clara.corpus import Reading

    return Reading(
        sources,
        names=names,
        limits=limits,
        on_error=on_error.value,
        on_duplicate=on_duplicate.value,
        on_failure=failures,
    )


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
