"""Rows of Parquet files and Arrow streams, as the process that extracts reads them."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from clara.corpus.limits import ExpandsError, Limits
from clara.data.values import DataError
from clara.errors import reason

_ROWS = 256  # that are in memory as Python objects at once
_ENOUGH = 4_000_000  # characters of rows, after which an answer is complete
_BUFFER = 1 << 20  # bytes of a column that are read at once
_MOST_OF_SIZE = 100
"""A file may expand to so many times its size, whatever the limit is: text does to some ten."""

_PLAIN = (str, bool, int, float, type(None))


def table_answers(
    kind: str, file: BinaryIO, limits: Limits, after: int
) -> Iterator[dict[str, Any]]:
    """The rows of an open table, some at a time.

    Args:
        kind: "parquet" or "arrow", a stream as `datasets` writes it.
        file: at its beginning; it is closed at the end.
        after: rows that are passed over.

    Yields:
        `{"columns": names, "rows": [[number, values, None], [number, None, flaw], ...]}` with rows
        numbered from 1. Values are what JSON holds; `{"type": name}` stands for any other.

    Raises:
        DataError: it is no such file, or is damaged; the rows before are given.
        ExpandsError: it expands to too much; the rows before are given.
    """
    with file:
        most = max(limits.expanded_bytes, _MOST_OF_SIZE * os.fstat(file.fileno()).st_size)
        columns: list[str] = []
        rows: list[list[Any]] = []
        pending = expanded = 0
        try:
            for columns, number, values, flaw in _rows(_BATCHES[kind](file), limits, after):
                size = len(json.dumps(values, ensure_ascii=False))
                pending, expanded = pending + size, expanded + size
                if expanded > most:
                    raise ExpandsError(
                        f"expands to {_MOST_OF_SIZE} times its size and more than "
                        f"{limits.expanded_mb:g} MB, the limit expanded_mb"
                    )
                rows.append([number, values, flaw])
                if len(rows) >= _ROWS or pending >= _ENOUGH:
                    yield {"columns": columns, "rows": rows}
                    rows, pending = [], 0
        except DataError:
            if rows:
                yield {"columns": columns, "rows": rows}
            raise
        yield {"columns": columns, "rows": rows}


def _parquet_batches(file: BinaryIO) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A whole column of a group of rows would be in memory without a buffer.
        table = pq.ParquetFile(file, buffer_size=_BUFFER)
        yield from table.iter_batches(batch_size=_ROWS, use_threads=False)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns
        raise DataError(f"cannot be read as Parquet: {reason(error)}") from error


def _stream_batches(file: BinaryIO) -> Iterator[Any]:
    """Batches of at most `_ROWS` rows; what a damaged file holds is not followed blindly."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(file) as stream:
            for batch in stream:
                batch.validate(full=True)
                for begin in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(begin, _ROWS)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # an empty file, names of columns
        raise DataError(f"cannot be read as an Arrow stream: {reason(error)}") from error


_BATCHES: dict[str, Callable[[BinaryIO], Iterator[Any]]] = {
    "parquet": _parquet_batches,
    "arrow": _stream_batches,
}
TABLES = frozenset(_BATCHES)
"""Kinds that `table_answers` reads."""


def _rows(
    batches: Iterator[Any], limits: Limits, after: int
) -> Iterator[tuple[list[str], int, list[Any] | None, str | None]]:
    """Columns, number, and values or what is wrong: too long, or not UTF-8."""
    number = 0
    for batch in batches:
        names = _names(batch)
        large = batch.nbytes > limits.document_bytes
        for row in range(batch.num_rows):
            number += 1
            if number <= after:
                continue
            if large and _row_bytes(batch, row) > limits.document_bytes:
                yield names, number, None, limits.too_long("the row")
                continue
            try:
                values = [_as_json(column[row].as_py()) for column in batch.columns]
            except (UnicodeDecodeError, ValueError, OverflowError) as error:
                yield names, number, None, f"cannot be read: {reason(error)}"
                continue
            yield names, number, values, None


def _row_bytes(batch: Any, row: int) -> int:
    """Bytes of one row's values.

    A slice of a dictionary has the bytes of all of its values, and one of views those of all that
    they point into: there the value itself is measured.
    """
    return sum(_value_bytes(column, row) for column in batch.columns)


def _value_bytes(column: Any, row: int) -> int:
    import pyarrow as pa

    cell = column.slice(row, 1)
    if isinstance(cell, pa.DictionaryArray):
        cell = cell.dictionary_decode()
    if isinstance(cell, pa.StringViewArray | pa.BinaryViewArray):
        return len(cell[0].as_buffer() or b"")
    return int(cell.nbytes)


def _names(batch: Any) -> list[str]:
    try:
        names = list(batch.schema.names)
    except UnicodeDecodeError as error:
        raise DataError(f"the name of a column cannot be read: {reason(error)}") from error
    if len(set(names)) != len(names):
        raise DataError("two columns have the same name")
    return names


def _as_json(value: Any) -> Any:
    """A value as JSON holds it; dates and times as text, `{"type": name}` for what is no scalar."""
    if isinstance(value, _PLAIN) or value == []:
        return value
    if isinstance(value, datetime.date | datetime.time):  # and datetime, which is a date
        return value.isoformat()
    return {"type": type(value).__name__}
