"""Parts of large tensors, so that what is computed of one fits a cache or a limit of memory."""

from __future__ import annotations

from collections.abc import Iterator

_COLUMNS = 8192


def slices(total: int, step: int) -> Iterator[slice]:
    """Slices of `step` that cover `total`; the last may be shorter."""
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def rows_within(values: int, width: int) -> int:
    """How many rows of `width` hold at most that many values; at least one."""
    return max(values // max(width, 1), 1)


def row_slices(rows: int, width: int, values: int) -> Iterator[slice]:
    """Slices of rows with at most that many values each, or of one row."""
    return slices(rows, rows_within(values, width))


def column_slices(width: int) -> Iterator[slice]:
    """Slices of columns, so that only a slice at a time is held in float32."""
    return slices(width, _COLUMNS)
