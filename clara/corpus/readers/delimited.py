"""CSV and TSV: a header and a record of as many fields on each row."""

from __future__ import annotations

import codecs
import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from clara.corpus.documents import Failure
from clara.corpus.limits import Limits
from clara.corpus.readers.plain import byte_flaw
from clara.corpus.readers.rows import Row, bounded_lines
from clara.data.values import DataError, shown
from clara.errors import reason

_DELIMITERS = ",;\t|"


class _Lines:
    """Lines of a file as the csv module takes them, and what is wrong with them.

    Attributes:
        begin: number of the first line of the record that is being read.
        flaw: of a line of it, None where there is none. A byte that is not UTF-8 stays in its
            place as half a surrogate pair, so that the record ends where it does.
    """

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._lines = bounded_lines(file, limits.document_bytes)
        self._limits = limits
        self._size = self._number = 0
        self.begin_record()

    def begin_record(self) -> None:
        self.begin = self._number + 1
        self._size = 0
        self.flaw: str | None = None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number = line.number
        self._size += 0 if line.raw is None else len(line.raw)
        if line.raw is None or self._size > self._limits.document_bytes:
            what = self._limits.too_long("the record, perhaps for want of a closing quote,")
            raise DataError(f"{what}; the rest of the file is not read")
        raw = line.raw
        if line.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if self.flaw is None:
            self.flaw = byte_flaw(raw, line.offset + len(line.raw) - len(raw))
        return raw.decode("utf-8", "surrogateescape").replace("\0", "\ufffd")


def delimited_rows(descriptor: int, shown_path: str, limits: Limits) -> Iterator[Row | Failure]:
    """The records of a table, whose first row names the columns.

    The delimiter of a file whose name ends with ".tsv" is the tab, of others the one of comma,
    semicolon, tab and bar that the header has most of. Empty fields are None. A column without a
    name, which pandas writes first, is left out.

    Args:
        descriptor: of the open file, which is closed at the end.
        shown_path: the file's path in messages.

    Raises:
        DataError: there is no header that names the columns, or a record has no end.
    """
    with os.fdopen(descriptor, "rb") as file:
        lines = _Lines(file, limits)
        tabs = shown_path.lower().endswith(".tsv")
        first = next(lines, "")
        if flaw := lines.flaw:
            raise DataError(flaw)
        delimiter = "\t" if tabs else max(_DELIMITERS, key=_unquoted(first).count)
        reader = csv.reader(_with(first, lines), delimiter=delimiter, strict=True)
        try:
            with _long_fields(limits):
                header = next(reader, [])
            columns = _columns(header)
        except csv.Error as error:
            raise DataError(f"header: {reason(error)}") from error
        lines.begin_record()
        number = 0
        while True:
            try:
                with _long_fields(limits):
                    values = next(reader)
            except StopIteration:
                return
            except (csv.Error, DataError) as error:
                rest = "" if isinstance(error, DataError) else "; the rest of the file is not read"
                raise DataError(f"record at line {lines.begin}: {reason(error)}{rest}") from error
            where, flaw = f"{shown_path}:{lines.begin}", lines.flaw
            lines.begin_record()
            if not values:
                continue
            number += 1
            if flaw is None and len(values) != len(columns):
                flaw = f"has {len(values)} fields, the header names {len(columns)}"
            if flaw:
                yield Failure(where, flaw)
                continue
            fields = {name: value or None for name, value in zip(columns, values) if name}
            yield Row(where, number, fields, fields.keys())


@contextmanager
def _long_fields(limits: Limits) -> Iterator[None]:
    """The csv module's own limit, which is one for the whole process, out of the way of ours."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, limits.document_bytes + 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _with(first: str, lines: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from lines


def _unquoted(line: str) -> str:
    """A header without what stands between quotes."""
    return "".join(line.split('"')[::2])


def _columns(names: list[str]) -> list[str]:
    if not any(name.strip() for name in names):
        raise DataError("has no header; the first row names the columns")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        what = f"the column {shown(repeated[0])}" if repeated[0] else "a column without a name"
        raise DataError(f"the header has {what} twice")
    return names
