"""`clara index view`: a view of an index, which searches map into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import options, streams
from clara.cli.errors import BAD_USAGE, CommandError
from clara.cli.index_documents import Path_
from clara.cli.loading import open_index
from clara.terminal.printing import one_line, print_json, size

if TYPE_CHECKING:
    from clara.index import MemoryIndex
    from clara.index.viewing import ViewFile


def view(
    path: Path_,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the view with its checksums.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove all views.")] = False,
    view_folder: options.ViewFolder = None,
    as_json: options.Json = False,
) -> None:
    """Write a view of an index, from which searches read what documents are ranked by.

    The first search of a large index makes it by itself. Answers do not change. It is a file in
    the folder of the index, and takes the place of views of earlier versions.
    """
    streams.output_is_extra()
    if check and remove:
        raise CommandError("--check and --remove exclude each other", BAD_USAGE)
    index = open_index(path, True if view_folder is None else view_folder)
    if remove:
        freed = index.remove_views()
        found: dict[str, Any] = {"bytes_freed": freed}
        line = f"{size(freed)} freed"
    else:
        made = index.check_view() if check else _built(index)
        if made is None:
            raise CommandError(f"{index.path}: has no view of its last version")
        found = {"view": made.path, "rows": made.rows, "bytes": made.size}
        done = "intact" if check else "written"
        line = f"view {done}, {made.rows:,} rows, {size(made.size)}"
    if as_json:
        print_json({"index": index.path, **found})
    else:
        print(one_line(f"{line}: {index.path}"))


def _built(index: MemoryIndex) -> ViewFile:
    from clara.terminal.progress import document_progress

    with document_progress("view", len(index), unit="rows") as bar:
        return index.build_view(bar.advance)
