"""`clara index build`, `add` and `replace`: from sources of many kinds to an index."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import options, streams
from clara.cli.aborts import explain_aborts
from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.cli.loading import load_model
from clara.cli.paths import check_device, check_model, check_output, expanded
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
from clara.terminal.printing import is_terminal, one_line, print_json, say, size

if TYPE_CHECKING:
    from clara.corpus import Reading
    from clara.index import MemoryIndex
    from clara.sync import Build, Built, Decision

LINES_EVERY = 30.0
"""Seconds between two lines of progress, where standard error is no terminal."""

_SHOWN = 10  # fields in a line


def build(
    context: typer.Context,
    model: options.Model,
    output: Annotated[
        str,
        typer.Option("--output", "--index", help="Folder of the index, made if there is none."),
    ],
    sources: Sources,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Delete documents of these sources that are gone from them. Nothing is deleted "
            "after a failure.",
        ),
    ] = False,
    yes: options.Yes = False,
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
    overflow: options.OverflowOfIndex = None,
    compression_rate: options.RateOfIndex = None,
    any_rate: options.AnyRate = False,
    storage: options.StorageOfIndex = None,
    batch_tokens: options.BatchTokens = None,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    streams.output_is_extra()
    task = context.info_name or "build"
    if prune and task in ("add", "replace"):
        raise CommandError(f"--prune is for 'clara index build', not for {task}", BAD_USAGE)
    check_model(model, backbone=backbone)
    check_device(device)
    check_output(output, resume=True)
    failures = Failures()
    names = field_names(text_field, id_field, title_field, metadata_field, no_metadata)
    limits = limits_of(max_document_mb, max_seconds, max_memory_mb, max_expanded_mb)
    reading = reading_of(sources, names, limits, on_error, on_duplicate, failures)
    loaded = load_model(model, backbone=backbone, device=device, quantization=quantization)
    settings: dict[str, Any] = {
        "overflow": None if overflow is None else overflow.value,
        "storage": None if storage is None else storage.value,
        "compression_rate": compression_rate,
        "any_rate": any_rate,
        "batch_tokens": batch_tokens,
    }
    from clara.model.building import prepare_build

    if (expanded(output) / "_versions").is_dir():
        explain_aborts(expanded(output))
    with warnings.catch_warnings(record=True) as caught, user_errors():
        warnings.simplefilter("always")  # the command hides those of libraries
        prepared = prepare_build(
            loaded,
            output,
            reading,
            allowed=_allowed(task),
            prune=prune,
            confirm=(lambda gone, documents: True) if yes else asked,
            model_name=model,
            spelled=options.spelled,
            **settings,
        )
    for warning in caught:
        say(str(warning.message))
    _carry_out(prepared, task, reading, failures, as_json)


def _allowed(task: str) -> Collection[Decision]:
    """What a command may do with documents."""
    from clara.sync import Decision
    from clara.sync.build import ALL

    return {"add": {Decision.ADD}, "replace": {Decision.REPLACE}}.get(task, ALL)


def _carry_out(
    prepared: Build, task: str, reading: Reading, failures: Failures, as_json: bool
) -> None:
    """Do it, and print what was done, whatever failed."""
    from clara.sync import BuildError
    from clara.terminal.progress import document_progress

    error: ClaraError | None = None
    with document_progress(task, prepared.total, lines_every=LINES_EVERY) as bar:
        try:
            built = prepared.run(bar.advance)
        except BuildError as raised:  # what was done is shown first
            built, error = raised.built, raised
    if built.left_out:
        say(left_out(built))
    found = described(built, prepared.index)
    if as_json:
        print_json({**found, "errors": failures.shown})
    else:
        print(summary(built, found))
    if built.why_not_deleted:
        what = (
            f"{built.not_deleted:,} documents are gone from their sources and were not deleted: "
            f"{built.why_not_deleted}"
        )
        if error is None and not reading.failures:
            error = CommandError(f"{what}; add --yes to delete them")
        else:
            say(what)
    if error is not None:
        raise error


def asked(gone: int, documents: int) -> bool:
    """Whether somebody at the terminal agrees to a large deletion; False where nobody is."""
    return confirmed(
        f"{gone:,} of {documents:,} documents of these sources are gone from them. Delete them?"
    )


def confirmed(question: str) -> bool:
    """The answer of somebody at the terminal; False where nobody is."""
    return somebody_answers() and typer.confirm(one_line(question), err=True)


def somebody_answers() -> bool:
    """Whether a question can be asked and answered at a terminal."""
    return is_terminal() and sys.stdin is not None and sys.stdin.isatty()


def described(built: Built, index: MemoryIndex | None) -> dict[str, Any]:
    """What was done, and what the index holds now, as JSON holds it."""
    found = built.as_fields()
    if index is None:
        return found
    return {**found, **held(index.info())}


def held(info: dict[str, Any]) -> dict[str, Any]:
    """What an index holds, by its `info`."""
    return {
        "index_documents": info["documents"],
        "index_rows": info["count"],
        "index_bytes": info["bytes"],
    }


def compressed(built: Built) -> str:
    """What the last line says of what was compressed; "" for nothing."""
    if not built.rows:
        return ""
    return (
        f"; {built.rows:,} rows, {built.tokens:,} tokens in {built.seconds:.1f} s "
        f"({built.documents_per_second:.1f} documents/s), "
        f"{built.effective_compression:.1f}x effective compression"
    )


def summary(built: Built, found: dict[str, Any]) -> str:
    """The last line for a reader."""
    parts = [
        f"{built.added:,} added",
        f"{built.replaced:,} replaced",
        f"{built.unchanged:,} unchanged",
        f"{built.deleted:,} deleted",
        f"{built.failed:,} failed",
    ]
    if built.duplicates:
        parts.append(f"{built.duplicates:,} with the id of another document")
    line = ", ".join(parts)
    line += compressed(built)
    if built.index is not None:
        line += (
            f"; index of {found['index_documents']:,} documents, {size(found['index_bytes'])}: "
            f"{built.index}"
        )
    return one_line(line)


def left_out(built: Built) -> str:
    """The line about fields that the index has no column for."""
    fields = list(built.left_out.items())
    listed = ", ".join(f"{name!r} ({where})" for name, where in fields[:_SHOWN])
    more = ", …" if len(fields) > _SHOWN else ""
    return f"left out fields that the index has no column for: {listed}{more}"
