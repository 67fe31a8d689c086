"""Values of Arrow columns as Python's, several times faster than `to_pylist`.

Strings and bytes are slices of a copy of the column: where a damaged file has moved the offsets, a
slice is another one than was written, which its checksum shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def values_of(column: pa.Array) -> list[Any]:
    """Numbers, bytes of one size, or strings as bytes: invalid UTF-8 gets as far as a checksum."""
    if pa.types.is_integer(column.type):
        return column.to_pylist() if column.null_count else column.to_numpy().tolist()
    count = len(column)
    if not count:
        return []  # whose buffers may be missing
    if pa.types.is_fixed_size_binary(column.type):
        size = column.type.byte_width
        offsets = list(range(column.offset * size, (column.offset + count) * size + 1, size))
        data = column.buffers()[1]
    else:
        _, ends, data = column.buffers()
        offsets = np.frombuffer(ends, np.int64)[column.offset :][: count + 1].tolist()
    held = b"" if data is None else data.to_pybytes()
    found: list[Any] = [held[begin:end] for begin, end in zip(offsets, offsets[1:])]
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            found[row] = None
    return found
