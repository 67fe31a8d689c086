"""JSON lines: a record on each line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from clara.corpus.documents import Failure
from clara.corpus.limits import Limits
from clara.corpus.readers.rows import Row, bounded_lines
from clara.data import recognition
from clara.data.lines import parsed
from clara.data.values import DataError


def json_rows(descriptor: int, shown: str, limits: Limits) -> Iterator[Row | Failure]:
    """The records of a file; a line that cannot be read is a failure, and the next one follows.

    Args:
        descriptor: of the open file, which is closed at the end.
        shown: the file's path in messages.

    Raises:
        DataError: the file is plainly of another kind.
    """
    with os.fdopen(descriptor, "rb", buffering=recognition.HEAD) as file:
        head = file.peek(recognition.HEAD)  # type: ignore[attr-defined]
        if message := recognition.foreign(shown, head, recognition.RECORDS):
            raise DataError(message.removeprefix(f"{shown}: "))
        number = 0
        for line in bounded_lines(file, limits.document_bytes):
            where = f"{shown}:{line.number}"
            if line.raw is None:
                number += 1
                yield Failure(where, limits.too_long("the line"))
                continue
            raw = line.raw.removeprefix(codecs.BOM_UTF8) if line.number == 1 else line.raw
            if not raw.strip():
                continue
            number += 1
            try:
                fields = parsed(raw, where)
            except DataError as error:
                yield Failure(where, str(error).removeprefix(f"{where}: "))
                continue
            yield Row(where, number, fields)
