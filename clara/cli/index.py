"""`clara index`: maintain an index."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clara.cli import (
    index_build,
    index_documents,
    index_migrate,
    index_verify,
    index_versions,
    index_view,
    options,
    streams,
)
from clara.cli.errors import Group, user_errors
from clara.cli.loading import load_both, open_index
from clara.terminal.printing import one_line, print_json

index = typer.Typer(cls=Group, name="index", no_args_is_help=True, help="Maintain an index.")

_SHOWN = 5  # ids in a line

index.command(
    "build",
    help="Bring an index in step with files, folders and tables, or make one of them.\n\n"
    "Documents that the index holds unchanged are skipped, so a build that was killed goes on "
    "where it was. Failures are listed on standard error; all other documents are stored.",
)(index_build.build)
index.command(
    "add",
    help="Add documents of files, folders and tables.\n\nLike `build`, but a document that the "
    "index holds with another content is a failure.",
)(index_build.build)
index.command(
    "replace",
    help="Replace documents by those of files, folders and tables.\n\nLike `build`, but a "
    "document that the index does not hold is a failure.",
)(index_build.build)
index.command("list")(index_documents.list_documents)
index.command("get")(index_documents.get)
index.command("delete")(index_documents.delete)
index.command("export")(index_documents.export)
index.command("import")(index_documents.import_)
index.command("verify")(index_verify.verify)
index.command("migrate")(index_migrate.migrate)
index.command("versions")(index_versions.versions)
index.command("restore")(index_versions.restore)
index.command("compact")(index_versions.compact)
index.command("view")(index_view.view)


@index.command("info")
def info(
    path: Annotated[str, typer.Argument(help="Folder of the index.")],
    as_json: options.Json = False,
) -> None:
    """Describe an index: format, storage, documents, and bytes of a document.

    The bytes of a document are those on disk, and those by the formula of docs/sizing.md, which
    are reached once the files of an index are joined and old versions removed.
    """
    found = open_index(path).info()
    if as_json:
        print_json(found)
        return
    from clara.cli.inspection import print_described

    print_described(found)


@index.command("upgrade")
def upgrade(
    model: options.NamedModel,
    path: Annotated[str, typer.Argument(help="Folder of the index.")],
    backbone: options.Backbone = None,
    as_json: options.Json = False,
) -> None:
    """Upgrade an index of an earlier release to the current format, without compressing again.

    After the upgrade several hosts can add documents at once, the fingerprint covers all weights
    of the model, and the index stores every document once, without padding. It is one commit: a
    command that is killed leaves the index as it was. Memory keeps every bit. The files of the
    earlier format stay in the folder, as an old version, so it needs room for both.
    """
    streams.output_is_extra()
    opened, loaded = load_both(path, model, backbone, "cpu", None)
    from clara.index.maintenance import upgrade as upgrade_index
    from clara.terminal.progress import document_progress

    with user_errors():
        loaded.memory_space.require(
            opened, f"{opened.path}: was written", "name the model that wrote it"
        )
    before = opened.info()
    with document_progress("upgrade", before["count"]) as bar:
        done = upgrade_index(path, fingerprint=loaded.fingerprint, on_progress=bar.advance)
    after = opened.info()
    result = {
        "index": done.path,
        "changed": done.changed,
        "format_version": after["format_version"],
        "fingerprint": after["fingerprint"],
        "duplicate_ids": done.duplicate_ids,
        "removed_rows": done.removed_rows,
        "index_documents": after["documents"],
        "index_rows": after["count"],
    }
    if as_json:
        print_json(result)
    else:
        print(summary(before, result))


def summary(before: dict[str, Any], result: dict[str, Any]) -> str:
    """The line for a reader."""
    if not result["changed"]:
        return one_line(f"{result['index']}: has the current format already; nothing was changed")
    notes = []
    if before["format_version"] != result["format_version"]:
        notes.append(f"format {before['format_version']} became {result['format_version']}")
    if before["fingerprint"] != result["fingerprint"]:
        notes.append("it has the fingerprint of all weights")
    if result["removed_rows"]:
        ids = result["duplicate_ids"]
        shown = ", ".join(repr(name) for name in ids[:_SHOWN]) + (
            ", …" if len(ids) > _SHOWN else ""
        )
        notes.append(
            f"{result['removed_rows']:,} rows were removed whose ids were stored twice ({shown})"
        )
    return one_line(
        f"{result['index']}: upgraded, {result['index_documents']:,} documents; {'; '.join(notes)}"
    )
