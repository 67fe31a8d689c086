"""`clara index`: maintain an index."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clara.cli import options
from clara.cli.errors import Group, user_errors
from clara.cli.loading import load_both
from clara.terminal.printing import one_line, print_json

index = typer.Typer(cls=Group, name="index", no_args_is_help=True, help="Maintain an index.")

_SHOWN = 5  # ids in a line


@index.command("upgrade")
def upgrade(
    model: options.Model,
    path: Annotated[str, typer.Argument(help="Folder of the index.")],
    backbone: options.Backbone = None,
    as_json: options.Json = False,
) -> None:
    """Upgrade an index of an earlier release to the current format, without compressing again.

    After the upgrade several hosts can add documents at once, the fingerprint covers all weights
    of the model, and the index stores every document once. Memory is not rewritten.
    """
    opened, loaded = load_both(path, model, backbone, "cpu", None)
    from clara.index.maintenance import upgrade as upgrade_index

    with user_errors():
        loaded.memory_space.require(
            opened, f"{opened.path}: was written", "name the model that wrote it"
        )
    before = opened.info()
    done = upgrade_index(path, fingerprint=loaded.fingerprint)
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
