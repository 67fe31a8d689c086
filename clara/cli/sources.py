"""Options that say which sources to read and how; the reading they stand for."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.terminal.printing import say

if TYPE_CHECKING:
    from clara.corpus import Failure, FieldNames, Limits, Reading

_MOST_LISTED = 100  # failures that have a line of their own


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
        help="File, folder, quoted pattern such as 'docs/**/*.md', folder that datasets saved, or "
        "datasets:NAME of the Hugging Face hub; NAME=PATH names it.",
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
    typer.Option(
        "--max-seconds",
        help="Processor time to extract one HTML, PDF or DOCX file, or some hundred rows of a "
        "Parquet file or data set.",
    ),
]
MaxMemory = Annotated[
    float, typer.Option("--max-memory-mb", help="Memory of the process that extracts.")
]
MaxExpanded = Annotated[
    float, typer.Option("--max-expanded-mb", help="Size of an unpacked DOCX or Parquet file.")
]


class Failures:
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


def field_names(
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


def limits_of(document: float, seconds: float, memory: float, expanded: float) -> Limits:
    from clara.corpus import Limits

    with user_errors():
        return Limits(document, seconds, memory, expanded)


def reading_of(
    sources: list[str],
    names: FieldNames,
    limits: Limits,
    on_error: OnError,
    on_duplicate: OnDuplicate,
    failures: Failures,
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
