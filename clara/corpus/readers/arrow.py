"""Parquet, and folders that `datasets` saved: tables with typed columns."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from clara.corpus.documents import Failure
from clara.corpus.limits import Limits
from clara.corpus.opening import opened
from clara.corpus.readers.rows import Row
from clara.data.values import DataError
from clara.errors import reason

_ROWS = 256  # that are in memory as Python objects at once
_LONGEST_JSON = 10_000_000  # bytes of a description that `datasets` writes


def parquet_rows(descriptor: int, shown: str, limits: Limits) -> Iterator[Row | Failure]:
    """The rows of a Parquet file.

    Args:
        descriptor: of the open file, which is closed at the end.
        shown: the file's path in messages.

    Raises:
        DataError: it is no Parquet file, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with os.fdopen(descriptor, "rb") as file:
        try:
            table = pq.ParquetFile(file)
            yield from _rows(table.iter_batches(batch_size=_ROWS), shown, limits, 0)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns
            raise DataError(f"cannot be read as Parquet: {reason(error)}") from error


def dataset_rows(folder: str, shown: str, limits: Limits) -> Iterator[Row | Failure]:
    """The rows of a data set that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    The splits of a `DatasetDict` follow one another, and their rows are numbered through. Only the
    Arrow files are read. No code that comes with a data set is run.

    Raises:
        DataError: the folder is not as `datasets` writes it.
    """
    number = 0
    root = os.path.realpath(folder)
    for split in _splits(root):
        for name in _data_files(root, split):
            path = os.path.join(root, split, name)
            place = os.path.join(shown, split, name)
            for item in _stream_rows(root, path, place, limits, number):
                number += 1
                yield item


def _splits(root: str) -> list[str]:
    """The folders below it that hold data; "" is the folder itself."""
    if not os.path.lexists(os.path.join(root, "dataset_dict.json")):
        return [""]
    names = _described(root, "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise DataError("dataset_dict.json: field 'splits' must be a list of names of folders")
    return names


def _data_files(root: str, split: str) -> list[str]:
    entries = _described(root, os.path.join(split, "state.json")).get("_data_files")
    given = entries if isinstance(entries, list) else [None]
    names = [each.get("filename") if isinstance(each, dict) else None for each in given]
    if not all(_is_name(name) for name in names):
        raise DataError("state.json: field '_data_files' must be a list of names of files")
    return [str(name) for name in names]


def _is_name(value: Any) -> bool:
    """Whether a value names something in the folder itself, not outside of it."""
    if not isinstance(value, str) or value in ("", ".", ".."):
        return False
    return not {"/", os.sep, "\0"} & set(value)


def _described(root: str, place: str) -> dict[str, Any]:
    name = os.path.basename(place)
    try:
        with _opened(root, os.path.join(root, place)) as file:
            value = json.loads(file.read(_LONGEST_JSON))
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON: {reason(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{name}: must be a JSON object")
    return value


def _opened(root: str, path: str) -> BinaryIO:
    try:
        return os.fdopen(opened(path, root), "rb")
    except DataError as error:
        raise DataError(f"{os.path.basename(path)}: {error}") from error


def _stream_rows(
    root: str, path: str, shown: str, limits: Limits, before: int
) -> Iterator[Row | Failure]:
    import pyarrow as pa

    try:
        with _opened(root, path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_stream(pa.py_buffer(mapped)) as stream:
            yield from _rows(_checked(stream), shown, limits, before)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # an empty file, names of columns
        raise DataError(
            f"{os.path.basename(path)}: cannot be read as an Arrow stream: {reason(error)}"
        ) from error


def _checked(stream: Any) -> Iterator[Any]:
    """Batches of at most `_ROWS` rows; what a damaged file holds is not followed blindly."""
    for batch in stream:
        batch.validate(full=True)
        for begin in range(0, batch.num_rows, _ROWS):
            yield batch.slice(begin, _ROWS)


def _rows(batches: Any, shown: str, limits: Limits, before: int) -> Iterator[Row | Failure]:
    """Rows of record batches, a failure for each that is too long or not UTF-8.

    Args:
        before: rows of the source before them; places are counted in the file.
    """
    place = 0
    for batch in batches:
        names = list(dict.fromkeys(batch.schema.names))
        if len(names) != batch.num_columns:
            raise DataError("two columns have the same name")
        large = batch.nbytes > limits.document_bytes
        for row in range(batch.num_rows):
            place += 1
            where = f"{shown}: row {place}"
            if large and batch.slice(row, 1).nbytes > limits.document_bytes:
                yield Failure(where, limits.too_long("the row"))
                continue
            try:
                values = {name: batch.column(at)[row].as_py() for at, name in enumerate(names)}
            except (UnicodeDecodeError, ValueError, OverflowError) as error:
                yield Failure(where, f"cannot be read: {reason(error)}")
                continue
            yield Row(where, before + place, values, names)
