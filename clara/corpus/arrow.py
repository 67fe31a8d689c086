"""Parquet, and what `datasets` saved or has in its cache: tables with typed columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from clara.corpus.documents import Failure
from clara.corpus.extraction.process import Extractor, TableRow
from clara.corpus.hub import Table
from clara.corpus.limits import ExpandsError
from clara.corpus.opening import opened
from clara.corpus.readers.rows import Row
from clara.data.values import DataError
from clara.errors import reason

_LONGEST_JSON = 10_000_000  # bytes of a description that `datasets` writes


def parquet_rows(descriptor: int, shown: str, extractor: Extractor) -> Iterator[Row | Failure]:
    """The rows of a Parquet file.

    Args:
        descriptor: of the open file, which is closed at the end.
        shown: the file's path in messages.
        extractor: reads it.

    Raises:
        DataError: it is no Parquet file, is damaged, or reading it met a limit.
    """
    return _rows(extractor.rows("parquet", descriptor), shown, 0)


def dataset_rows(folder: str, shown: str, extractor: Extractor) -> Iterator[Row | Failure]:
    """The rows of a data set that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    The splits of a `DatasetDict` follow one another, and their rows are numbered through. Only the
    Arrow files are read. No code that comes with a data set is run.

    Raises:
        DataError: the folder is not as `datasets` writes it, or reading a file met a limit.
    """
    number = 0
    root = os.path.realpath(folder)
    for split in _splits(root):
        for name in _data_files(root, split):
            place = os.path.join(shown, split, name)
            for item in _arrow_rows(
                os.path.join(root, split, name), root, place, number, extractor
            ):
                number += 1
                yield item


def hub_rows(tables: Sequence[Table], shown: str, extractor: Extractor) -> Iterator[Row | Failure]:
    """The rows of a data set of the hub that `load_tables` has loaded, as `dataset_rows` has them.

    Raises:
        DataError: a file of the cache is gone or damaged, or reading it met a limit.
    """
    number = 0
    for split, path in tables:
        place = f"{shown}: {split}/{os.path.basename(path)}"
        for item in _arrow_rows(path, None, place, number, extractor):
            number += 1
            yield item


def _arrow_rows(
    path: str, root: str | None, place: str, before: int, extractor: Extractor
) -> Iterator[Row | Failure]:
    """The rows of one file.

    Args:
        root: see `opened`.
        place: of the file in messages about rows.
        before: rows of the data set before them.

    Raises:
        DataError: names the file.
    """
    name = os.path.basename(path)
    try:
        yield from _rows(extractor.rows("arrow", opened(path, root)), place, before)
    except ExpandsError as error:
        raise ExpandsError(f"{name}: {error}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error


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


def _rows(found: Iterator[TableRow], shown: str, before: int) -> Iterator[Row | Failure]:
    """Rows, and a failure for each that cannot be read.

    Args:
        before: rows of the source before them; places are counted in the file.
    """
    for row in found:
        where = f"{shown}: row {row.number}"
        if row.flaw is not None:
            yield Failure(where, row.flaw)
        else:
            yield Row(where, before + row.number, row.values, row.columns)
