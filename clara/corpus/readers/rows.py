"""What the readers of tables share: rows, and lines that are not longer than a limit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple


@dataclass(frozen=True)
class Row:
    """A record of a table.

    Attributes:
        where: the file, with the line or row.
        number: of the record in its file, from 1 on.
        values: by the name of the field.
        columns: of the table; None where each record has fields of its own.
    """

    where: str
    number: int
    values: Mapping[str, Any]
    columns: Collection[str] | None = None


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: from 1 on.
        offset: bytes before it.
        raw: with its end; None where it is longer than the limit.
    """

    number: int
    offset: int
    raw: bytes | None


def bounded_lines(file: BinaryIO, longest: int) -> Iterator[Line]:
    """The lines of a file, of which no more than `longest` bytes are ever in memory at once."""
    offset = number = 0
    while raw := file.readline(longest + 1):
        number += 1
        begin, offset = offset, offset + len(raw)
        if len(raw) <= longest or (len(raw) == longest + 1 and raw.endswith(b"\n")):
            yield Line(number, begin, raw)
            continue
        while not raw.endswith(b"\n") and (raw := file.readline(longest + 1)):
            offset += len(raw)
        yield Line(number, begin, None)
