"""`clara index migrate`: compress an index again by another model, and switch to it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import index_build, options, streams
from clara.cli.errors import user_errors
from clara.cli.index_documents import Path_
from clara.cli.loading import load_both
from clara.terminal.printing import one_line, print_json, say, size

if TYPE_CHECKING:
    from clara.sync import Migrated

_SHOWN = 12  # characters of a fingerprint


def migrate(
    model: options.NamedModel,
    path: Path_,
    overflow: Annotated[
        options.Overflow | None,
        typer.Option(
            "--overflow",
            help="Split, cut or refuse documents over the new model's limit. Default: what the "
            "index was begun with.",
            show_default=False,
        ),
    ] = None,
    compression_rate: Annotated[
        int | None,
        typer.Option(
            "--compression-rate",
            min=1,
            help="Tokens per memory token, for a model in memory form spans. Default: the new "
            "model's rate.",
            show_default=False,
        ),
    ] = None,
    any_rate: options.AnyRate = False,
    storage: Annotated[
        options.StorageName | None,
        typer.Option(
            "--storage",
            help="How memory is stored. Default: as the index stores it now.",
            show_default=False,
        ),
    ] = None,
    batch_tokens: options.BatchTokens = None,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Compress all documents again by another model, from the texts that the index holds.

    Until all are compressed the index stays as it is: others search and change it, and what they
    change is taken up. Then one commit switches to the new model. A command that was killed goes
    on where it was when it is run again. Earlier versions stay until `clara index compact` removes
    them, and `clara index restore` brings the earlier model's index back.
    """
    streams.output_is_extra()
    opened, loaded = load_both(path, model, backbone, device, quantization)
    if opened.settings.get("overflow") == "truncate":
        say(
            "long documents were cut when the index was built: it holds only their beginnings, "
            "which are compressed again; build from the sources to have all of them"
        )
    settings: dict[str, Any] = {
        "overflow": None if overflow is None else overflow.value,
        "storage": None if storage is None else storage.value,
        "compression_rate": compression_rate,
        "any_rate": any_rate,
        "batch_tokens": batch_tokens,
    }
    from clara.model.building import prepare_migration
    from clara.terminal.progress import document_progress

    with warnings.catch_warnings(record=True) as caught, user_errors():
        warnings.simplefilter("always")  # the command hides those of libraries
        migration = prepare_migration(loaded, path, spelled=options.spelled, **settings)
    for warning in caught:
        say(str(warning.message))
    with document_progress("migrate", migration.total, lines_every=index_build.LINES_EVERY) as bar:
        done = migration.run(bar.advance)
    found = described(done)
    if as_json:
        print_json(found)
    else:
        print(summary(done, found))


def described(done: Migrated) -> dict[str, Any]:
    """What was done, and what the index holds now, as JSON holds it."""
    from clara.index import MemoryIndex

    info = MemoryIndex.open(done.index).info()
    built = done.built
    return {
        "index": done.index,
        "changed": done.changed,
        "documents": built.added,
        "resumed": done.resumed or 0,
        "rows": built.rows,
        "tokens": built.tokens,
        "memory_tokens": built.memory_tokens,
        "seconds": built.seconds,
        "documents_per_second": built.documents_per_second,
        "effective_compression": built.effective_compression,
        "fingerprint_before": done.before,
        "fingerprint": done.after,
        "version_before": done.version,
        "storage": info["storage"],
        **index_build.held(info),
    }


def summary(done: Migrated, found: dict[str, Any]) -> str:
    """The last line for a reader."""
    if not done.changed:
        return one_line(
            f"{done.index}: is of this model and has these settings already; nothing was changed"
        )
    built = done.built
    parts = [f"{built.added:,} compressed again"]
    if done.resumed:
        parts.append(f"{done.resumed:,} by an earlier run")
    line = ", ".join(parts)
    line += index_build.compressed(built)
    before, after = done.before[:_SHOWN], done.after[:_SHOWN]
    if before != after:
        line += f"; model {before} became {after}"
    return one_line(
        f"{line}; 'clara index restore INDEX {done.version}' goes back; index of "
        f"{found['index_documents']:,} documents, {size(found['index_bytes'])}: {done.index}"
    )
