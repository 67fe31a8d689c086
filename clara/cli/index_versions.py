"""`clara index versions`, `restore` and `compact`: earlier versions, and room on the disk."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

import typer

from clara.cli import options, streams
from clara.cli.errors import BAD_USAGE, CommandError
from clara.cli.index_documents import Path_
from clara.cli.loading import open_index
from clara.terminal.printing import one_line, print_json, size

_AGE = re.compile(r"(\d{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def _checked_age(value: str | None) -> str | None:
    if value is not None and not _AGE.fullmatch(value):
        raise typer.BadParameter(f"must be a number of days, hours or minutes (7d, 12h): {value!r}")
    return value


def versions(path: Path_, as_json: options.Json = False) -> None:
    """List the versions of an index, oldest first: one for each commit.

    Where they are not all of one model, each says the model that it can be searched with.
    """
    index = open_index(path)
    found = index.versions()
    if as_json:
        print_json(
            {
                "index": index.path,
                "versions": [
                    {
                        "number": each.number,
                        "time": each.time.isoformat(),
                        "documents": each.documents,
                        "rows": each.rows,
                        "fingerprint": each.fingerprint,
                    }
                    for each in found
                ],
            }
        )
        return
    several = len({each.fingerprint for each in found}) > 1
    for each in found:
        model = f", model {each.fingerprint[:12] or 'unknown'}" if several else ""
        print(
            one_line(
                f"{each.number}: {each.time:%Y-%m-%d %H:%M:%S} UTC, {each.documents:,} documents, "
                f"{each.rows:,} rows{model}"
            )
        )


def restore(
    path: Path_,
    number: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of a version.")],
    as_json: options.Json = False,
) -> None:
    """Make an earlier version the last one again, in one commit.

    What was committed after it stays in versions of its own.
    """
    streams.output_is_extra()
    index = open_index(path)
    index.restore(number)
    info = index.info()
    if as_json:
        print_json({"index": index.path, "restored": number, "index_documents": info["documents"]})
    else:
        print(
            one_line(
                f"version {number} is the last one again, {info['documents']:,} documents: "
                f"{index.path}"
            )
        )


def compact(
    path: Path_,
    keep_versions: Annotated[
        int | None,
        typer.Option(
            "--keep-versions",
            min=1,
            help="Then remove all versions but so many of the last ones. It cannot be undone.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            callback=_checked_age,
            help="Then remove versions older than this, such as 7d or 12h. It cannot be undone.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Join the files of an index, and rewrite those that hold deleted rows.

    Ids, order and answers stay. Earlier versions keep their files until they are removed, so
    room is freed only with --keep-versions or --older-than.
    """
    streams.output_is_extra()
    if keep_versions is not None and older_than is not None:
        raise CommandError("--keep-versions and --older-than exclude each other", BAD_USAGE)
    index = open_index(path)
    before = index.info()["bytes"]
    done = index.compact()
    freed = 0
    if keep_versions is not None:
        freed = index.clean_up(keep_versions=keep_versions)
    elif older_than is not None:
        number, unit = _AGE.fullmatch(older_than).groups()  # type: ignore[union-attr]  # checked
        age = datetime.timedelta(**{_UNITS[unit]: int(number)})
        freed = index.clean_up(older_than=age)
    after = index.info()["bytes"]
    if as_json:
        print_json(
            {
                "index": index.path,
                "files_removed": done.removed,
                "files_written": done.written,
                "bytes_freed": freed,
                "bytes_before": before,
                "index_bytes": after,
            }
        )
        return
    count = "1 file" if done.removed == 1 else f"{done.removed:,} files"
    files = f"{count} became {done.written:,}" if done.removed else "nothing to join"
    print(
        one_line(
            f"{files}, {size(freed)} freed; {size(before)} before, {size(after)} now: {index.path}"
        )
    )
